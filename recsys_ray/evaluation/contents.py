"""What a report holds, and its JSON form."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from recsys_ray.evaluation.summary import Bucket, Gain, Interval, Scores

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
class Report:
    """The content of report.json.

    Attributes:
        dataset: A name for people.
        users: Users of the dataset.
        items: N, items of the catalogue.
        protocol: `leave_one_out`, `global_time` or `given`.
        refit: Whether these numbers come from a second fit on train and validation.
        seed: Of the run.
        metrics: Channel or "fused" to its metrics on test.
        validation: The same on validation.
        buckets: Popularity bucket (head, mid, tail, cold) to metrics on test; warm_users and new_users
            where some are new.
        index: Measured indexes; empty where the release has none.
        seconds: Stage to seconds.
    """

    dataset: str
    users: int
    items: int
    protocol: str
    refit: bool
    seed: int
    metrics: dict[str, Scores]
    validation: dict[str, Scores]
    buckets: dict[str, Bucket]
    index: tuple[IndexRow, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def chosen_index(self) -> IndexRow | None:
        """The first chosen index: that of the space named first."""
        return next((row for row in self.index if row.chosen), None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; a number that is not finite becomes null."""
        chosen = self.chosen_index
        values = {
            "dataset": self.dataset,
            "users": self.users,
            "items": self.items,
            "protocol": self.protocol,
            "refit": self.refit,
            "seed": self.seed,
            "metrics": {name: _scores_json(scores) for name, scores in self.metrics.items()},
            "validation": {name: _scores_json(scores) for name, scores in self.validation.items()},
            "buckets": {name: _bucket_json(bucket) for name, bucket in self.buckets.items()},
            "index": {
                f"recall@{_INDEX_K}": chosen.recall if chosen and chosen.k == _INDEX_K else None,
                "queries_per_s": chosen.queries_per_s if chosen else None,
                "table": [asdict(row) for row in self.index],
            },
            "seconds": dict(self.seconds),
        }
        return {name: finite(value) for name, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(
            **{name: values[name] for name in ("dataset", "users", "items", "protocol", "refit", "seed")},
            metrics={name: _scores_from(scores) for name, scores in values["metrics"].items()},
            validation={name: _scores_from(scores) for name, scores in values["validation"].items()},
            buckets={name: _bucket_from(bucket) for name, bucket in values["buckets"].items()},
            index=tuple(IndexRow(**row) for row in values["index"]["table"]),
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
        num_queries: Test queries that were asked.
        gains: Fused against the best single channel.
        data: Summary that prepare wrote; nested counts are shown as they are.
        training: None where nothing was trained.
        index_notes: Space to the sentence that says why its index was chosen.
        fusion_method: How lists were merged.
        fusion_weights: Channel to weight.
        config: The run's settings as plain values.
    """

    num_queries: int
    gains: tuple[Gain, ...] = ()
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


def finite(value: Any) -> Any:
    """The same JSON value with null instead of NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _scores_json(scores: Scores | None) -> dict[str, Any] | None:
    return None if scores is None else {**scores.values, CI: scores.ci95}


def _bucket_json(bucket: Bucket) -> dict[str, Any]:
    return {"n": bucket.n, **{name: _scores_json(scores) for name, scores in bucket.scores.items()}}


def _scores_from(values: Mapping[str, Any]) -> Scores:
    intervals: dict[str, Interval] = {name: (low, high) for name, (low, high) in values[CI].items()}
    return Scores({name: value for name, value in values.items() if name != CI}, intervals)


def _bucket_from(values: Mapping[str, Any]) -> Bucket:
    scores = {name: None if inner is None else _scores_from(inner) for name, inner in values.items() if name != "n"}
    return Bucket(values["n"], scores)
