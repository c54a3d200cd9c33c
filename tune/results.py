"""What a search leaves: the best configuration, all trials as JSON, a table in the terminal, and a page."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from recsys_ray.config import RunConfig, dump_config
from recsys_ray.core.config import override
from recsys_ray.core.errors import RecsysError
from recsys_ray.core.progress import console, say
from recsys_ray.evaluation.contents import Section
from recsys_ray.evaluation.page import Headline, Plot, percent, render_template
from recsys_ray.training.progress import MEASURE
from tune.plots import by_epoch, by_setting, by_trial, importance_bars
from tune.spaces import Choice, Space
from tune.study import FAILED, FINISHED, METRIC, METRICS, STOPPED, Row

BEST_FILE, TRIALS_FILE, PAGE_FILE = "best.yaml", "trials.json", "trials.html"


@dataclass(frozen=True)
class Group:
    """Plots under one heading."""

    heading: str
    text: str
    plots: tuple[Plot, ...]


def conclude(
    config: RunConfig, space: Space, trials: Sequence[Row], importances: Mapping[str, float], storage: Path
) -> RunConfig:
    """Write and show all trials, best first, and the best configuration, which is returned.

    Raises:
        RecsysError: When no trial ran to its end.
    """
    for row in trials:
        if row.status == FAILED:
            say(f"trial {row.trial} failed: {row.failure}")
    if not trials or trials[0].status != FINISHED:
        reasons = "; ".join(row.failure for row in trials if row.failure) or "all were stopped"
        raise RecsysError(f"none of {len(trials)} trials ran to its end: {reasons}")
    (storage / TRIALS_FILE).write_text(json.dumps([_plain(row) for row in trials], indent=1) + "\n")
    (storage / PAGE_FILE).write_text(render(space, trials, importances), encoding="utf-8")
    _show(trials)
    best = override(config, trials[0].settings)
    (storage / BEST_FILE).write_text(dump_config(best))
    say(
        f"best: trial {trials[0].trial} with {METRIC} {trials[0].metrics[METRIC]:.4f} on validation; its configuration "
        f"is {storage / BEST_FILE}, all trials: {storage / PAGE_FILE}"
    )
    return best


def trials_section(trials: Sequence[Row]) -> Section:
    """All trials as a table."""
    rows = tuple(
        (
            str(row.trial),
            row.status,
            *(row.metrics.get(name) for name in METRICS),
            max(row.epochs.values(), default=None),
            len(row.epochs),
            None if row.seconds is None else f"{row.seconds:.0f}",
            *map(_text, row.settings.values()),
        )
        for row in trials
    )
    text = (
        f"Fused metrics on validation, of trials that ran to their end; the towers' own {MEASURE} is that of their "
        "best epoch, and none where another trial had trained them before."
    )
    columns = ("trial", "status", *METRICS, f"towers {MEASURE}", "epochs", "seconds", *trials[0].settings)
    return Section("Trials, by fused validation recall", text, columns, rows)


def render(space: Space, trials: Sequence[Row], importances: Mapping[str, float]) -> str:
    """The page."""
    best = trials[0]
    counts = {status: sum(row.status == status for row in trials) for status in (FINISHED, STOPPED, FAILED)}
    failed = f", {counts[FAILED]} failed" if counts[FAILED] else ""
    headlines = [
        Headline(METRIC, percent(best.metrics[METRIC]), f"the best trial, number {best.trial}, fused, on validation"),
        Headline("recall@100", percent(best.metrics["recall@100"]), "of the same trial"),
        Headline(
            "trials", str(len(trials)), f"{counts[FINISHED]} ran to their end, {counts[STOPPED]} stopped early{failed}"
        ),
    ]
    lead = (
        f"{len(trials)} configurations were tried. Each was trained, fitted and merged on the training events, and "
        "judged by the events held back for validation; test events were never looked at. The best: "
        f"{_settings(best)}."
    )
    return render_template(
        "page.html.jinja",
        package="tune",
        title="What the search found",
        lead=lead,
        headlines=headlines,
        groups=list(_groups(space, trials, importances)),
        table=trials_section(trials),
    )


def _groups(space: Space, trials: Sequence[Row], importances: Mapping[str, float]) -> Iterator[Group]:
    finished = [row for row in trials if row.status == FINISHED]
    values = {row.trial: row.metrics[METRIC] for row in finished}
    first = [
        Plot(
            "Trial by trial",
            f"Fused {METRIC} of each finished trial; the line is the best so far.",
            by_trial(values, METRIC, f"{METRIC} by trial"),
        )
    ]
    curves = [(row.epochs, row is trials[0], row.status == STOPPED) for row in trials if row.epochs]
    if curves:
        sentence = (
            "The towers' own validation while they train, a line a trial. A cross: stopped early, since others were "
            "ahead after as many epochs. This measure stops trials; it does not choose among those that finished."
        )
        first.append(Plot("Epoch by epoch", sentence, by_epoch(curves, MEASURE, f"{MEASURE} by epoch")))
    yield Group("How it went", "Every dot is a whole run, from training to merged lists.", tuple(first))
    plots = [_setting_plot(path, dimension, finished) for path, dimension in space.items()]
    if importances:
        sentence = "How much each setting decided whether a trial was among the best quarter (PED-ANOVA)."
        plots.insert(0, Plot("What mattered", sentence, importance_bars(importances)))
    text = f"Fused {METRIC} of the finished trials. Settings vary together, so one plot alone proves little."
    yield Group("Setting by setting", text, tuple(plots))


def _setting_plot(path: str, dimension: Any, finished: Sequence[Row]) -> Plot:
    pairs = [(row.settings[path], row.metrics[METRIC]) for row in finished]
    if isinstance(dimension, Choice):
        return Plot(path, f"One of {len(dimension.values)} values.", by_setting(pairs, dimension.values, False, METRIC))
    sentence = f"From {dimension.low:g} to {dimension.high:g}{', logarithmic' if dimension.log else ''}."
    return Plot(path, sentence, by_setting(pairs, None, dimension.log, METRIC))


def _show(trials: Sequence[Row]) -> None:
    table = Table("trial", "status", METRIC, "recall@100", "epochs", title="Trials, by fused validation recall")
    table.add_column("settings", overflow="fold")
    for row in trials:
        metrics = [f"{row.metrics[name]:.4f}" if row.metrics else "-" for name in (METRIC, "recall@100")]
        table.add_row(str(row.trial), row.status, *metrics, str(len(row.epochs)), _settings(row, _short_names(row)))
    console().print(table)


def _settings(row: Row, names: Mapping[str, str] | None = None) -> str:
    return ", ".join(f"{(names or {}).get(path, path)}={_text(value)}" for path, value in row.settings.items())


def _short_names(row: Row) -> dict[str, str]:
    """Each path's last name, where no other path ends alike."""
    last = {path: path.rpartition(".")[2] for path in row.settings}
    return {path: name for path, name in last.items() if list(last.values()).count(name) == 1}


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(row: Row) -> dict[str, Any]:
    """As JSON values: the epochs' values in order."""
    values = asdict(row)
    return {**values, "epochs": [{"epoch": epoch, MEASURE: value} for epoch, value in row.epochs.items()]}
