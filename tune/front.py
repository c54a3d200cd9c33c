"""The Pareto front of recall, latency and bytes, and the choice of one configuration that meets a target."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys_ray.core.errors import ConfigError
from tune.measure import Measured

ENOUGH = 0.99
"""Without a target: the share of the best recall that is kept."""


@dataclass(frozen=True)
class Point:
    """One configuration.

    Attributes:
        id: Names it, and the file of its settings.
        settings: Dotted path to value, of what was varied.
        measured: What it costs and finds.
        fused: Fused metrics on validation of the whole run with it; empty where it is not on the front.
    """

    id: str
    settings: dict[str, Any]
    measured: Measured
    fused: dict[str, float] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The settings for people, without those that say nothing."""
        told = {path.removeprefix("index."): value for path, value in self.settings.items() if value not in (None, "")}
        return ", ".join(f"{name}={value}" for name, value in told.items())


@dataclass(frozen=True)
class Target:
    """What is asked of a configuration; None asks nothing.

    Attributes:
        max_p95_ms: Of a query, encoded and searched.
        max_bytes: Of the searched file and the encoder.
        min_recall: recall@100 of the nearest channel on validation.
    """

    max_p95_ms: float | None = None
    max_bytes: int | None = None
    min_recall: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("--max-p95-ms", self.max_p95_ms), ("--max-bytes", self.max_bytes)):
            if value is not None and value <= 0:
                raise ConfigError(name, value, "above 0")
        if self.min_recall is not None and not 0 < self.min_recall <= 1:
            raise ConfigError("--min-recall", self.min_recall, "above 0, at most 1")

    def is_met(self, measured: Measured) -> bool:
        """Whether all of it holds."""
        return (
            (self.max_p95_ms is None or measured.p95_ms <= self.max_p95_ms)
            and (self.max_bytes is None or measured.num_bytes <= self.max_bytes)
            and (self.min_recall is None or measured.recall >= self.min_recall)
        )

    def __str__(self) -> str:
        parts = (
            ("recall@100 >=", self.min_recall, ""),
            ("p95 <=", self.max_p95_ms, " ms"),
            ("size <=", self.max_bytes, " bytes"),
        )
        return ", ".join(f"{text} {value:g}{unit}" for text, value, unit in parts if value is not None) or "nothing"


def front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats, highest recall first. Of equals the first stands.

    Latencies are compared in two significant digits: below that they are noise.
    """
    costs = [_costs(point.measured) for point in points]
    kept = [
        point
        for place, point in enumerate(points)
        if not any(
            all(a <= b for a, b in zip(other, costs[place], strict=True)) and (other != costs[place] or before < place)
            for before, other in enumerate(costs)
        )
    ]
    return sorted(kept, key=lambda point: (-point.measured.recall, point.measured.num_bytes))


def stated(target: Target, points: Sequence[Point]) -> Target:
    """The target; where none is given, nearly the recall of the best."""
    if target != Target():
        return target
    return Target(min_recall=ENOUGH * max(point.measured.recall for point in points))


def cheapest(points: Sequence[Point], target: Target) -> Point | None:
    """The configuration that meets a target at the fewest bytes; where no recall is asked for, at the highest recall.

    Of equals the fastest.
    """
    meeting = [point for point in points if target.is_met(point.measured)]
    if target.min_recall is None:
        return min(meeting, key=lambda one: (-one.measured.recall, *_costs(one.measured)[1:]), default=None)
    return min(meeting, key=lambda one: (one.measured.num_bytes, one.measured.p95_ms), default=None)


def _costs(measured: Measured) -> tuple[float, float, float]:
    """What is to be small."""
    return -round(measured.recall, 6), float(measured.num_bytes), float(f"{measured.p95_ms:.1e}")
