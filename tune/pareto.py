"""Recall against latency against bytes: measure every candidate, keep the front, name the cheapest that is enough.

Only towers are trained, once each; lengths of vectors and indexes are measured on them without training anything again.
All is measured on validation, in one process, the candidates taking turns.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from rich.table import Table

from recsys_ray.config import RunConfig, dump_config
from recsys_ray.core.artifacts import artifact_id
from recsys_ray.core.config import override, result_settings
from recsys_ray.core.errors import RecsysError
from recsys_ray.core.progress import console, say
from recsys_ray.pipeline import validate
from tune.candidates import Candidate, candidates_of, need_towers, require_space, train, trainings
from tune.front import Point, Target, cheapest, front, stated
from tune.front_page import render
from tune.measure import measure
from tune.search import NO_EXTRAS
from tune.spaces import Space, require_fit
from tune.study import METRIC

FRONT_FOLDER, FRONT_FILE, PAGE_FILE = "front", "pareto.json", "pareto.html"


def pareto(config: RunConfig, space: Space, trials: int, target: Target) -> Point:
    """Find the front and the cheapest configuration that meets a target.

    Leaves ``<storage>/pareto.json`` and ``pareto.html``, and ``front/<id>.yaml`` for each configuration of the front:
    the whole run with its settings, for `recsys-ray run --config`, which finds what was trained here.

    Args:
        config: The run to start from.
        space: What to vary beside the defaults: settings of model and training, `index.dim`, `index.factory`; may be
            empty.
        trials: How many trainings at most.
        target: What to meet.

    Returns:
        The chosen configuration.

    Raises:
        ConfigError: When the space does not fit, or no channel searches the towers.
        RecsysError: When nothing meets the target; the front is written all the same.
    """
    storage = Path(config.storage).absolute()
    config = override(config, {"storage": str(storage)})
    need_towers(config)
    require_space(space)
    require_fit(space, config)
    candidates = list(_candidates(config, space, trials))
    say(f"measuring {len(candidates)} configurations")
    configs = [candidate.config for candidate in candidates]
    points = [
        Point(_id(whole), candidate.settings, measured)
        for whole, candidate, measured in zip(configs, candidates, measure(candidates), strict=True)
    ]
    target = stated(target, points)
    chosen = cheapest(points, target)
    best = front(points)
    kept = best if chosen is None or chosen in best else [*best, chosen]
    by_id = {point.id: whole for point, whole in zip(points, configs, strict=True)}
    fused = [_with_fused(point, by_id[point.id]) for point in kept]
    _write(storage, points, fused, target, chosen)
    for point in fused:
        (storage / FRONT_FOLDER / f"{point.id}.yaml").write_text(dump_config(by_id[point.id]))
    return _conclude(storage, fused, target, chosen)


def _candidates(config: RunConfig, space: Space, trials: int) -> Iterator[Candidate]:
    for settings in trainings(space, config, trials):
        say(f"towers with {settings}" if settings else "towers as configured")
        yield from candidates_of(train(config, settings), space)


def _with_fused(point: Point, config: RunConfig) -> Point:
    say(f"the whole run with {point.id}, on validation")
    return replace(point, fused=validate(override(config, NO_EXTRAS))["fused"])


def _id(config: RunConfig) -> str:
    """Names a configuration by all that decides its results."""
    return artifact_id("configuration", 1, result_settings(config), {})[:8]


def _write(storage: Path, points: Sequence[Point], kept: Sequence[Point], target: Target, chosen: Point | None) -> None:
    shutil.rmtree(storage / FRONT_FOLDER, ignore_errors=True)
    (storage / FRONT_FOLDER).mkdir()
    names = {point.id for point in kept}
    document = {
        "target": asdict(target),
        "chosen": None if chosen is None else chosen.id,
        "front": [_plain(point) for point in kept],
        "others": [_plain(point) for point in points if point.id not in names],
    }
    (storage / FRONT_FILE).write_text(json.dumps(document, indent=1) + "\n")
    page = render(points, kept, target, None if chosen is None else chosen.id)
    (storage / PAGE_FILE).write_text(page, encoding="utf-8")


def _conclude(storage: Path, kept: Sequence[Point], target: Target, chosen: Point | None) -> Point:
    console().print(_table(kept, chosen))
    say(f"the front: {storage / FRONT_FILE}, to look at: {storage / PAGE_FILE}")
    if chosen is None:
        nearest = max(kept, key=lambda point: point.measured.recall).measured
        raise RecsysError(
            f"no configuration meets {target}; the highest recall@100 is {nearest.recall:.4f} at p95 "
            f"{nearest.p95_ms:.2f} ms and {nearest.num_bytes:,} bytes"
        )
    whole = next(point for point in kept if point.id == chosen.id)
    measured = whole.measured
    say(
        f"the cheapest configuration that meets {target}: {whole.id} with recall@100 {measured.recall:.4f} "
        f"(fused {METRIC} {whole.fused[METRIC]:.4f}), p95 {measured.p95_ms:.2f} ms, {measured.num_bytes:,} bytes"
    )
    say(f"publish it: recsys-ray run --config {storage / FRONT_FOLDER / whole.id}.yaml")
    return whole


def _table(kept: Sequence[Point], chosen: Point | None) -> Table:
    table = Table(
        "id", "recall\n@100", f"fused\n{METRIC}", "p50\nms", "p95\nms", "MB", "bytes\nan item", title="The front"
    )
    table.add_column("settings", overflow="fold")
    for point in kept:
        m = point.measured
        table.add_row(
            point.id,
            f"{m.recall:.4f}",
            f"{point.fused[METRIC]:.4f}",
            f"{m.p50_ms:.2f}",
            f"{m.p95_ms:.2f}",
            f"{m.num_bytes / 1e6:.2f}",
            f"{m.searched_bytes / m.num_items:.0f}",
            point.text,
            style="bold" if chosen is not None and point.id == chosen.id else None,
        )
    return table


def _plain(point: Point) -> dict[str, object]:
    return {**asdict(point), "num_bytes": point.measured.num_bytes}
