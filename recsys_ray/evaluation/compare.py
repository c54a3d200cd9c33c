"""Two reports side by side: differences, and by the same queries of both whether other users would undo them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console

from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.metrics import METRICS
from recsys_ray.evaluation.bootstrap import Values, interval, resampled
from recsys_ray.evaluation.contents import Report, Section
from recsys_ray.evaluation.page import render_template
from recsys_ray.evaluation.ranks import RANKS_FILE, REFIT, Ranks
from recsys_ray.evaluation.replay import FUSED
from recsys_ray.evaluation.report import REPORT_JSON, read_report, section_table
from recsys_ray.evaluation.sections import number, points, ranking_order
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import CHANGES, LIST_METRICS, Difference, Scores

_PAIRED = (
    "Both asked the same queries. B - A in points, ± half of its 95% interval by bootstrap over users; p: how often "
    "chance alone would give as much (of twenty rows without a difference, one has p < 0.05)."
)
_UNPAIRED = "Not paired, because {reason}. Each side has its own 95% interval; where they overlap, nothing is said."


@dataclass(frozen=True)
class Side:
    """One of the two reports.

    Attributes:
        name: How it is called in the comparison.
        report: Its report.json.
        ranks: Where its targets stand; None where the file is not there.
    """

    name: str
    report: Report
    ranks: Ranks | None

    @property
    def scores(self) -> dict[str, Scores]:
        """Ranking to metrics, those of the second fit too."""
        strict, refit = self.report.numbers.metrics, self.report.numbers.refit or {}
        return {**strict, **{name + REFIT: scores for name, scores in refit.items()}}


@dataclass(frozen=True)
class Judged:
    """A paired difference, second minus first.

    Attributes:
        difference: Its mean and interval.
        p: Two-sided, by the same bootstrap.
    """

    difference: Difference
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two reports and what can be said of their differences.

    Attributes:
        first: A.
        second: B.
        rankings: The rankings that both have, best first.
        why_not_paired: Why differences cannot be judged query by query; empty when they are.
        judged: (ranking, metric) to the paired difference; empty where they cannot be paired.
    """

    first: Side
    second: Side
    rankings: tuple[str, ...]
    why_not_paired: str
    judged: Mapping[tuple[str, str], Judged] = field(default_factory=dict)


def load_side(path: Path) -> Side:
    """A report by the storage of its run, the folder it lies in, or its report.json.

    Raises:
        ArtifactError: When there is none, or none of this version.
    """
    file = path / REPORT_JSON if path.is_dir() else path
    report, ranks = read_report(file), file.parent / RANKS_FILE
    return Side(str(path), report, Ranks.load(ranks) if ranks.is_file() else None)


def compare(first: Side, second: Side, config: EvaluationConfig) -> Comparison:
    """Every ranking that both reports have, in every metric.

    Args:
        first: A.
        second: B; differences are B minus A.
        config: Samples and seed of the bootstrap.

    Raises:
        ArtifactError: When they have no ranking in common.
    """
    common = {name: scores for name, scores in second.scores.items() if name in first.scores}
    if not common:
        raise ArtifactError(f"{first.name} and {second.name} have no channel in common")
    rankings, one, other = tuple(ranking_order(common)), first.ranks, second.ranks
    if one is None or other is None:
        absent = first if one is None else second
        return Comparison(first, second, rankings, f"{absent.name} has no {RANKS_FILE} beside its report")
    reason = _difference_in_queries(one, other)
    return Comparison(first, second, rankings, reason, {} if reason else _judge(one, other, rankings, config))


def comparison_sections(comparison: Comparison) -> list[Section]:
    """The fused list in every metric, then every ranking in the main ones."""
    paired = not comparison.why_not_paired
    text = _PAIRED if paired else _UNPAIRED.format(reason=comparison.why_not_paired)
    columns = ("A", "B", "B - A", "p") if paired else ("A", "A from … to", "B", "B from … to")
    found = [
        Section(
            f"{FUSED}{fit}",
            text,
            ("metric", *columns),
            tuple((metric, *_cells(comparison, f"{FUSED}{fit}", metric)) for metric in (*METRICS, *LIST_METRICS)),
        )
        for fit in ("", REFIT)
        if f"{FUSED}{fit}" in comparison.rankings
    ]
    return found + [
        Section(
            metric,
            "Every source that both have.",
            ("source", *columns),
            tuple((ranking, *_cells(comparison, ranking, metric)) for ranking in comparison.rankings),
        )
        for metric in CHANGES
    ]


def render_comparison(comparison: Comparison) -> str:
    """The comparison as a page of its own."""
    return render_template(
        "compare.html.jinja", comparison=comparison, sections=comparison_sections(comparison), fused=FUSED
    )


def print_comparison(comparison: Comparison, to: Console | None = None) -> None:
    """The comparison as tables in the terminal."""
    out = to or Console()
    for letter, side in (("A", comparison.first), ("B", comparison.second)):
        report = side.report
        out.print(
            f"{letter}: {side.name} ({report.dataset}, {report.items:,} items, {report.protocol}, "
            f"{report.numbers.num_queries:,} queries)",
            markup=False,
            highlight=False,
        )
    for section in comparison_sections(comparison):
        out.print(section_table(section))


def p_value(means: Values) -> float:
    """Two-sided: twice the smaller share of (S,) resampled means on either side of 0, never 0 itself."""
    least = min(int((means <= 0).sum()), int((means >= 0).sum()))
    return min(1.0, 2 * (least + 1) / (len(means) + 1))


def _difference_in_queries(one: Ranks, other: Ranks) -> str:
    """What the two measured differently; empty when they asked the same queries."""
    if one.num_items != other.num_items:
        return f"A ranked {one.num_items:,} items and B {other.num_items:,}"
    if not one.users.equals(other.users):
        return f"A asked for {one.describe()} and B for {other.describe()}, and they are not the same users"
    if not one.items.equals(other.items):
        return "A and B had to find different items for the same users: they were split differently"
    if one.asked_with != other.asked_with:
        return "A and B asked for the same items with different histories"
    return ""


def _judge(
    one: Ranks, other: Ranks, rankings: tuple[str, ...], config: EvaluationConfig
) -> dict[tuple[str, str], Judged]:
    pairs = [(ranking, metric) for ranking in rankings for metric in METRICS]
    values = np.stack([other.per_query(*pair) - one.per_query(*pair) for pair in pairs], axis=1)
    means = resampled(values, one.user_of_query, config)
    return {
        pair: Judged(Difference(float(values[:, place].mean()), interval(means[:, place])), p_value(means[:, place]))
        for place, pair in enumerate(pairs)
    }


def _cells(comparison: Comparison, ranking: str, metric: str) -> tuple[str, ...]:
    first, second = (side.scores[ranking] for side in (comparison.first, comparison.second))
    shown = [number(scores.values[metric], metric) for scores in (first, second)]
    if comparison.why_not_paired:
        return shown[0], _interval(first, metric), shown[1], _interval(second, metric)
    judged = comparison.judged.get((ranking, metric))
    return (*shown, "-", "-") if judged is None else (*shown, points(judged.difference), f"{judged.p:.3f}")


def _interval(scores: Scores, metric: str) -> str:
    if metric not in scores.ci95:
        return "-"
    low, high = scores.ci95[metric]
    return f"{low:.4f} … {high:.4f}"
