"""What a report holds, and its JSON form."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from recsys_ray.evaluation.bootstrap import Interval
from recsys_ray.evaluation.summary import Bucket, Difference, Evaluation, Gain, Scores

SECTIONS_FILE = "sections.json"
CI = "ci95"
_INDEX_K = 100


@dataclass(frozen=True)
class IndexRow:
    """One index that was measured against the exact ranking.

    Attributes:
        space: Id or name of the vector space.
        factory: FAISS factory string and search settings, as a person should read them.
        recall: Share of the exact top k that it finds, on held-out queries.
        k: What recall was measured over.
        queries_per_s: Single queries a second.
        num_bytes: Size of the index.
        chosen: Whether the release uses it.
    """

    space: str
    factory: str
    recall: float
    k: int
    queries_per_s: float
    num_bytes: int
    chosen: bool


@dataclass(frozen=True)
class Section:
    """A table of its own, shown as it is: on the page, in the terminal and in report.json.

    Attributes:
        heading: What it is about.
        text: How to read it, a sentence or two.
        columns: Column heads; the first is that of the row names.
        rows: One cell a column: text, a number, or None where there is none.
    """

    heading: str
    text: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str | float | None, ...], ...]


@dataclass(frozen=True)
class Report:
    """The content of report.json.

    Attributes:
        dataset: A name for people.
        users: Users of the dataset.
        items: N, items of the catalogue.
        protocol: `leave_one_out`, `global_time` or `given`.
        seed: Of the run.
        numbers: What was measured.
        warnings: What a reader must know before believing the numbers.
        channels: Channel to the settings it was fitted with and, under "tuning", how validation chose them.
        left_out: Channel that was asked for to the reason why it is not there.
        index: Measured indexes; empty where the release has none.
        sections: Tables of parts that not every run has.
        seconds: Stage to seconds.
    """

    dataset: str
    users: int
    items: int
    protocol: str
    seed: int
    numbers: Evaluation
    warnings: tuple[str, ...] = ()
    channels: dict[str, dict[str, Any]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    index: tuple[IndexRow, ...] = ()
    sections: tuple[Section, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def chosen_index(self) -> IndexRow | None:
        """The first chosen index: that of the space named first."""
        return next((row for row in self.index if row.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes null."""
        numbers, chosen = self.numbers, self.chosen_index
        values = {
            "dataset": self.dataset,
            "users": self.users,
            "items": self.items,
            "protocol": self.protocol,
            "seed": self.seed,
            "warnings": self.warnings,
            "queries": numbers.num_queries,
            "metrics": _by_ranking(numbers.metrics),
            "refit": None if numbers.refit is None else _by_ranking(numbers.refit),
            "refit_gain": _differences_json(numbers.refit_gain),
            "validation": _by_ranking(numbers.validation),
            "gains": [{"metric": one.metric, "best": one.best, **asdict(one.difference)} for one in numbers.gains],
            "contributions": {name: _differences_json(changes) for name, changes in numbers.contributions.items()},
            "buckets": {name: _bucket_json(bucket) for name, bucket in numbers.buckets.items()},
            "among_cold": None if numbers.among_cold is None else _bucket_json(numbers.among_cold),
            "short_histories": {name: _bucket_json(bucket) for name, bucket in numbers.short.items()},
            "channels": self.channels,
            "left_out": self.left_out,
            "index": {
                f"recall@{_INDEX_K}": chosen.recall if chosen and chosen.k == _INDEX_K else None,
                "queries_per_s": chosen.queries_per_s if chosen else None,
                "table": [asdict(row) for row in self.index],
            },
            "sections": [asdict(section) for section in self.sections],
            "seconds": self.seconds,
        }
        return {name: finite(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            **{name: values[name] for name in ("dataset", "users", "items", "protocol", "seed")},
            numbers=_numbers_from(values),
            warnings=tuple(values["warnings"]),
            channels=dict(values["channels"]),
            left_out=dict(values["left_out"]),
            index=tuple(IndexRow(**row) for row in values["index"]["table"]),
            sections=tuple(_section_from(section) for section in values["sections"]),
            seconds=dict(values["seconds"]),
        )


@dataclass(frozen=True)
class TrainingCurve:
    """How training went.

    Attributes:
        loss: Mean training loss of each epoch.
        validation: Validation metric after each epoch; empty where it was not measured.
        metric: Its name.
    """

    loss: tuple[float, ...]
    validation: tuple[float, ...] = ()
    metric: str = "recall@10"


@dataclass(frozen=True)
class Details:
    """What the page shows beside the contents of report.json.

    Attributes:
        data: Summary that prepare wrote; nested counts are shown as they are.
        training: None where nothing was trained.
        index_notes: Space to the sentence that says why its index was chosen.
        fusion_method: How lists were merged.
        fusion_weights: Channel to weight.
        config: The run's settings as plain values.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    training: TrainingCurve | None = None
    index_notes: Mapping[str, str] = field(default_factory=dict)
    fusion_method: str = ""
    fusion_weights: Mapping[str, float] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)


def index_rows(summaries: Mapping[str, Mapping[str, Any]]) -> tuple[IndexRow, ...]:
    """The measured indexes of each space.

    Args:
        summaries: Space to what `recsys_ray.index.spec.Choice.summary` gave.
    """
    return tuple(
        IndexRow(
            space=space,
            factory=" ".join(filter(None, [row["factory"], row["parameters"]])),
            recall=row["recall"],
            k=summary["k"],
            queries_per_s=row["queries_per_s"],
            num_bytes=row["num_bytes"],
            chosen=(row["factory"], row["parameters"]) == (summary["factory"], summary["parameters"]),
        )
        for space, summary in summaries.items()
        for row in summary["measured"]
    )


def save_sections(directory: Path, sections: Sequence[Section]) -> None:
    """Write `sections.json` into an existing directory."""
    text = json.dumps([asdict(section) for section in sections], indent=1, allow_nan=False)
    (directory / SECTIONS_FILE).write_text(text + "\n")


def load_sections(path: Path) -> tuple[Section, ...]:
    """Read what `save_sections` wrote."""
    return tuple(_section_from(values) for values in json.loads(path.read_text()))


def finite(value: Any) -> Any:
    """The same JSON value with null instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _by_ranking(scores: Mapping[str, Scores]) -> dict[str, Any]:
    return {name: _scores_json(one) for name, one in scores.items()}


def _scores_json(scores: Scores | None) -> dict[str, Any] | None:
    return None if scores is None else {**scores.values, CI: scores.ci95}


def _bucket_json(bucket: Bucket) -> dict[str, Any]:
    return {"n": bucket.n, **{name: _scores_json(scores) for name, scores in bucket.scores.items()}}


def _differences_json(differences: Mapping[str, Difference]) -> dict[str, Any]:
    return {metric: asdict(difference) for metric, difference in differences.items()}


def _numbers_from(values: Mapping[str, Any]) -> Evaluation:
    return Evaluation(
        num_queries=values["queries"],
        metrics=_rankings_from(values["metrics"]),
        validation=_rankings_from(values["validation"]),
        buckets={name: _bucket_from(bucket) for name, bucket in values["buckets"].items()},
        gains=tuple(Gain(one["metric"], one["best"], _difference_from(one)) for one in values["gains"]),
        contributions={name: _differences_from(changes) for name, changes in values["contributions"].items()},
        short={name: _bucket_from(bucket) for name, bucket in values["short_histories"].items()},
        refit=None if values["refit"] is None else _rankings_from(values["refit"]),
        refit_gain=_differences_from(values["refit_gain"]),
        among_cold=None if values["among_cold"] is None else _bucket_from(values["among_cold"]),
    )


def _rankings_from(values: Mapping[str, Any]) -> dict[str, Scores]:
    return {name: _scores_from(scores) for name, scores in values.items()}


def _scores_from(values: Mapping[str, Any]) -> Scores:
    intervals: dict[str, Interval] = {name: (low, high) for name, (low, high) in values[CI].items()}
    return Scores({name: value for name, value in values.items() if name != CI}, intervals)


def _bucket_from(values: Mapping[str, Any]) -> Bucket:
    scores = {name: None if inner is None else _scores_from(inner) for name, inner in values.items() if name != "n"}
    return Bucket(values["n"], scores)


def _differences_from(values: Mapping[str, Any]) -> dict[str, Difference]:
    return {metric: _difference_from(one) for metric, one in values.items()}


def _difference_from(values: Mapping[str, Any]) -> Difference:
    low, high = values[CI]
    return Difference(values["value"], (low, high))


def _section_from(values: Mapping[str, Any]) -> Section:
    rows = tuple(tuple(row) for row in values["rows"])
    return Section(values["heading"], values["text"], tuple(values["columns"]), rows)
