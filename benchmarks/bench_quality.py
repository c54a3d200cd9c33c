"""Quality of the default preset on public data sets: every channel and the fused list against the best published model.

    python benchmarks/bench_quality.py [--data FOLDER] [--storage FOLDER] [--set dotted.path=value] [SET ...]

Nothing is tuned by hand: every set is run with `presets.cpu`, its files, its split, and `evaluation.refit`, as a user
would. The folder holds one sub-folder a set (`SETS` says which files); those that are not there are skipped aloud.
Artifacts stay in the storage, so that a second call prints the tables again within seconds.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray import override, presets, run
from recsys_ray.core.config import parse_assignments
from recsys_ray.core.progress import say

DATA = Path(os.environ.get("RECSYS_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))
FUSED = "fused"
PARTS = ("train", "valid", "test")
Settings = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """One number to reach.

    Attributes:
        name: For people.
        part: "strict" or "refit".
        metric: Of the fused list.
        at_least: The number, or how many times the value of `channel`.
        channel: The channel that the fused list is measured against, None for a number.
    """

    name: str
    part: str
    metric: str
    at_least: float
    channel: str | None = None


@dataclass(frozen=True)
class Published:
    """The best published single model on exactly this data and protocol.

    Attributes:
        model: Its name and source.
        part: What its figures compare with: "strict" (fitted on train) or "refit" (on train and validation).
        values: Metric to value.
    """

    model: str
    part: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class Set:
    """One data set.

    Attributes:
        settings: (its folder, a scratch folder) to the settings that say where its files lie and how it is split.
        metrics: Shown in this order.
        published: None where nobody published under this protocol.
        targets: What the fused list should reach.
    """

    settings: Callable[[Path, Path], Settings]
    metrics: tuple[str, ...]
    published: Published | None = None
    targets: tuple[Target, ...] = field(default=())


def parquet_files(folder: Path, _: Path) -> Settings:
    """items, interactions and, where there are some, users."""
    found = {
        "data.items": folder / "items.parquet",
        "data.events": folder / "interactions.parquet",
        "data.users": folder / "users.parquet",
    }
    return {name: str(path) for name, path in found.items() if path.exists()}


def given_parts(folder: Path, scratch: Path) -> Settings:
    """train, valid and test in files of their own, whose events have no order: see `unordered`."""
    for part in PARTS:
        unordered(pq.read_table(folder / f"{part}.parquet"), scratch / f"{part}.parquet")
    return {
        "data.events": str(scratch / "train.parquet"),
        "split.protocol": "given",
        "split.validation_events": str(scratch / "valid.parquet"),
        "split.test_events": str(scratch / "test.parquet"),
    }


def unordered(events: pa.Table, path: Path) -> None:
    """Write events in a seeded random order: the order of the files is that of item ids, and ids may tell of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(events.take(np.random.default_rng(0).permutation(len(events))), path)


def sparse_parts(folder: Path, scratch: Path) -> Settings:
    """trn, val and tst as sparse matrices, with vectors of each item's picture and sound."""
    scratch.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("trn", "val", "tst"), PARTS, strict=True):
        pairs = np.load(folder / f"{name}.npz", allow_pickle=True)
        ids = {"user_id": pairs["row"].astype(str).tolist(), "item_id": pairs["col"].astype(str).tolist()}
        pq.write_table(pa.table(ids), scratch / f"{part}.parquet")
    vectors = {name: np.load(folder / f"{name}_feat.npy").astype(np.float32) for name in ("image", "audio")}
    count = len(vectors["image"])
    columns: dict[str, Any] = {"item_id": [str(row) for row in range(count)]}
    columns |= {f"{name}_vector": pa.array(list(values)) for name, values in vectors.items()}
    pq.write_table(pa.table(columns), scratch / "items.parquet")
    return {"data.items": str(scratch / "items.parquet"), **given_parts(scratch, scratch)}


def movielens_files(folder: Path, _: Path) -> Settings:
    """The files of the MovieLens release, plots and posters beside them; five rolling cuts in time."""
    return {
        "data.events": str(folder / "u.data"),
        "data.items": str(folder / "items.csv"),
        "data.users": str(folder / "u.user"),
        "data.images": str(folder / "posters"),
        "data.columns": {"item_id": "movie_id"},
        "split.protocol": "global_time",
    }


LEAVE_ONE_OUT = ("recall@10", "ndcg@10", "recall@100")
AT_20 = ("recall@20", "ndcg@20")
SETS = {
    "amazon_beauty": Set(
        parquet_files,
        LEAVE_ONE_OUT,
        Published("eSASRec", "strict", {"recall@10": 0.0928, "ndcg@10": 0.0531}),
        (
            Target("fused R@10", "strict", "recall@10", 0.124),
            Target("fused N@10", "strict", "ndcg@10", 0.073),
            Target("fused R@100", "strict", "recall@100", 0.308),
        ),
    ),
    "ml1m": Set(
        parquet_files,
        LEAVE_ONE_OUT,
        Published("SASRec with full cross-entropy", "strict", {"recall@10": 0.3159, "ndcg@10": 0.1857}),
        (
            Target("fused R@10", "strict", "recall@10", 0.335),
            Target("fused N@10", "strict", "ndcg@10", 0.197),
            Target("fused R@100", "strict", "recall@100", 0.70),
        ),
    ),
    "yelp": Set(
        parquet_files,
        LEAVE_ONE_OUT,
        Published("S3-Rec", "strict", {"recall@10": 0.0341, "ndcg@10": 0.0168}),
        (
            Target("fused R@10", "strict", "recall@10", 0.0545),
            Target("fused N@10", "strict", "ndcg@10", 0.0285),
            Target("fused R@100", "strict", "recall@100", 0.215),
        ),
    ),
    "gowalla": Set(
        given_parts,
        (*AT_20, "recall@100"),
        Published("SimpleX", "refit", {"recall@20": 0.1872, "ndcg@20": 0.1557}),
    ),
    "tiktok": Set(
        sparse_parts,
        (*AT_20, "recall@100"),
        Published("DiffMM (text features too)", "refit", {"recall@20": 0.1129, "ndcg@20": 0.0456}),
    ),
    "ml100k": Set(
        movielens_files,
        ("hit@10", "ndcg@10", "recall@100", "coverage@10"),
        targets=(
            Target("fused HR@10 against popularity-in-window", "strict", "hit@10", 1.0, "trending"),
            Target("fused coverage@10 against popularity-in-window", "strict", "coverage@10", 5.0, "trending"),
        ),
    ),
}


def measure(name: str, folder: Path, storage: Path, assignments: list[str]) -> dict[str, Any]:
    """The report of one set under the default preset."""
    settings = SETS[name].settings(folder, storage / f"{name}-files")
    fixed = {"name": name, "storage": str(storage / name), "evaluation.refit": True}
    config = override(override(presets.cpu(), {**settings, **fixed}), parse_assignments(assignments))
    return run(config, until="evaluate").require_report()


def show(name: str, report: dict[str, Any]) -> list[bool]:
    """Print one set's table; returns which of its targets were met."""
    spec = SETS[name]
    seconds = report["seconds"]
    wall = sum(seconds.values())
    print(
        f"\n{name}: {report['users']:,} users, {report['items']:,} items, {report['protocol']}, seed {report['seed']}"
    )
    print(f"stages {wall:,.0f} s: " + ", ".join(f"{stage} {value:.0f}" for stage, value in by_stage(seconds).items()))
    print(f"{'':28}" + "".join(f"{metric:>14}" for metric in spec.metrics))
    parts = {"strict": report["metrics"], "refit": report["refit"] or {}}
    for part, rankings in parts.items():
        for ranking, scores in rankings.items():
            print(f"{ranking + ', ' + part:28}" + "".join(f"{scores[metric]:14.4f}" for metric in spec.metrics))
    if spec.published is not None:
        _show_published(spec, parts)
    return [*(_check(target, parts) for target in spec.targets), _never_hurts(parts["strict"])]


def by_stage(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by stage, over all folds and fits."""
    sums: dict[str, float] = {}
    for name, value in seconds.items():
        stage = re.split(r" on | for | with ", name)[0]
        sums[stage] = sums.get(stage, 0.0) + value
    return sums


def _show_published(spec: Set, parts: Mapping[str, Any]) -> None:
    known = spec.published
    assert known is not None
    ours = parts[known.part].get(FUSED)
    figures = (f"{known.values[metric]:14.4f}" if metric in known.values else f"{'-':>14}" for metric in spec.metrics)
    print(f"{known.model[:27]:28}" + "".join(figures))
    if ours is not None:
        ratios = (
            f"{ours[metric] / known.values[metric]:14.3f}" if metric in known.values else f"{'-':>14}"
            for metric in spec.metrics
        )
        print(f"{'ratio, fused ' + known.part:28}" + "".join(ratios))


def _check(target: Target, parts: Mapping[str, Any]) -> bool:
    rankings = parts[target.part]
    value = rankings[FUSED][target.metric]
    wanted = target.at_least * (rankings[target.channel][target.metric] if target.channel else 1.0)
    met = bool(value >= wanted)
    ratio = value / wanted
    print(f"{'met' if met else 'MISSED'}: {target.name}, {target.part}: {value:.4f} of {wanted:.4f} ({ratio:.3f})")
    return met


def _never_hurts(rankings: Mapping[str, Any]) -> bool:
    singles = {name: scores["recall@100"] for name, scores in rankings.items() if name != FUSED}
    best = max(singles, key=lambda name: singles[name])
    ratio = rankings[FUSED]["recall@100"] / max(singles[best], 1e-12)
    met = bool(ratio >= 1.03)
    print(f"{'met' if met else 'MISSED'}: fused R@100 at least 1.03 of the best channel's ({best}): {ratio:.3f}")
    return met


def main() -> int:
    """Print a table for every set; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; all by default")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of one sub-folder a set")
    parser.add_argument("--storage", type=Path, default=Path(".bench"), help="where artifacts stay")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="over the preset; repeat it")
    arguments = parser.parse_args()
    unknown = set(arguments.sets) - set(SETS)
    if unknown:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(SETS)}")
    met: list[bool] = []
    for name in arguments.sets or SETS:
        folder = arguments.data / name
        if not folder.is_dir():
            say(f"{name}: skipped, there is no {folder}")
            continue
        met += show(name, measure(name, folder, arguments.storage, arguments.set))
        sys.stdout.flush()
    print(f"\nmet {sum(met)} of {len(met)}" if met else f"no data: give --data, or set RECSYS_RAY_DATA ({DATA})")
    return int(not all(met) or not met)


if __name__ == "__main__":
    raise SystemExit(main())
