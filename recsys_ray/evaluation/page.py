"""report.html: one file that needs nothing else, for a person who has never seen this project."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from recsys_ray.core.metrics import METRICS
from recsys_ray.evaluation.contents import Details, Report, Section, finite
from recsys_ray.evaluation.plots import Bar, bars, channel_colours, index_scatter, training_plot
from recsys_ray.evaluation.replay import FUSED
from recsys_ray.evaluation.sections import (
    cell,
    channel_section,
    cold_section,
    contribution_section,
    number,
    ranking_order,
    refit_section,
    short_sections,
)
from recsys_ray.evaluation.summary import COVERAGE, LIST_METRICS, Gain, Scores

COLUMNS = (*METRICS, *LIST_METRICS)
_WORDS = 30  # a longer cell is text to be read, no number or name
_PLOTTED = {"recall@10": 10, "recall@100": 100}
PROTOCOLS = {
    "leave_one_out": "the last event of every user was hidden, and the models had to find it again",
    "global_time": "the models saw everything before a cut in time, and had to find what users chose after it",
    "given": "the models had to find the events of a test file that they had not seen",
}
BUCKET_WORDS = {
    "head": ("Head", "the most popular items"),
    "mid": ("Middle", "items of middling popularity"),
    "tail": ("Tail", "rarely chosen items"),
    "cold": ("Cold", "items without any training event"),
    "warm_users": ("Known users", "users with training events"),
    "new_users": ("New users", "users without any training event"),
}


@dataclass(frozen=True)
class Plot:
    """A plot, its heading, and the sentence that says how to read it."""

    heading: str
    sentence: str
    svg: str


@dataclass(frozen=True)
class Headline:
    """One large number."""

    label: str
    value: str
    note: str


def render(report: Report, details: Details) -> str:
    """The whole page."""
    numbers = report.numbers
    colours = channel_colours(list(numbers.metrics), FUSED)
    return render_template(
        "report.html.jinja",
        report=report,
        numbers=numbers,
        details=details,
        fused=FUSED,
        columns=COLUMNS,
        colours=colours,
        how=PROTOCOLS.get(report.protocol, report.protocol),
        headlines=headlines(numbers.metrics[FUSED]),
        verdicts=[verdict(gain) for gain in numbers.gains],
        order=ranking_order(numbers.metrics),
        channel_plots=list(_channel_plots(report, colours)),
        contribution=contribution_section(report),
        contribution_plots=list(_contribution_plots(report, colours)),
        bucket_plots=list(_bucket_plots(report, colours)),
        cold=cold_section(report),
        short=list(short_sections(report)),
        refit=refit_section(report),
        tuned=channel_section(report),
        run_plots=list(_run_plots(report, details, colours)),
        bucket_words=BUCKET_WORDS,
        data=[(name, text) for name, text in flat(details.data) if name not in ("users", "items", "warnings")],
        config=yaml.safe_dump(json.loads(json.dumps(finite(details.config), default=str)), sort_keys=False),
    )


def render_template(name: str, package: str = "recsys_ray.evaluation", **values: Any) -> str:
    """A page of a package's templates, which may include those of this folder; they escape what they are given."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(one, ".") for one in (package, "recsys_ray.evaluation")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"cell": cell, "metric": number, "wide": _wide_columns}
    return environment.get_template(name).render(**values)


def _wide_columns(section: Section) -> set[int]:
    """The columns that hold sentences."""
    return {place for row in section.rows for place, value in enumerate(row) if len(cell(value)) > _WORDS}


def percent(value: float) -> str:
    """A share as people read it."""
    return f"{100 * value:.1f}%"


def headlines(scores: Scores) -> list[Headline]:
    """What the fused list reaches, in the numbers that people ask for first."""
    words = {
        "recall@10": "of the hidden items are among the first 10 recommendations",
        "recall@100": "are among the first 100, what a ranker would get to see",
        "ndcg@10": "NDCG@10: like recall@10, but higher places count more",
    }
    found = [
        Headline(metric, percent(scores.values[metric]), f"{text} ({_between(scores, metric)})")
        for metric, text in words.items()
    ]
    shown = Headline(COVERAGE, percent(scores.values[COVERAGE]), "of the catalogue is shown to somebody in a first 10")
    return [*found, shown]


def verdict(gain: Gain) -> str:
    """Whether fusing pays, in one sentence."""
    low, high = gain.difference.ci95
    interval = f"95% interval {100 * low:+.2f} to {100 * high:+.2f}"
    points = f"{100 * gain.difference.value:+.2f} points of {gain.metric} ({interval})"
    if low > 0:
        return f"Fusing the channels beats the best single one ({gain.best}) by {points}."
    if high < 0:
        return f"Fusing the channels loses to the best single one ({gain.best}): {points}."
    return f"Fused and the best single channel ({gain.best}) are too close to call: {points}."


def flat(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Nested counts as (name, text) lines."""
    for name, value in values.items():
        label = f"{path}, {name}" if path else str(name)
        if isinstance(value, Mapping):
            yield from flat(value, label)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            yield label.replace("_", " "), str(value)
        else:
            yield label.replace("_", " "), f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _between(scores: Scores, metric: str) -> str:
    low, high = scores.ci95[metric]
    return f"95% interval {100 * low:.1f} to {100 * high:.1f}"


def _channel_plots(report: Report, colours: Mapping[str, str]) -> Iterator[Plot]:
    for metric, count in _PLOTTED.items():
        heading = f"Found in the first {count}"
        sentence = (
            f"The share of hidden items that each source puts among its first {count} ({metric}); longer is better, "
            "and the thin line is the range in which the true value lies with 95% confidence."
        )
        rows = _bars(report.numbers.metrics, ranking_order(report.numbers.metrics), metric, colours)
        yield Plot(heading, sentence, bars(rows, f"{metric} by channel"))


def _contribution_plots(report: Report, colours: Mapping[str, str]) -> Iterator[Plot]:
    changes = report.numbers.contributions
    for metric in _PLOTTED if changes else ():
        order = sorted(changes, key=lambda name: -changes[name][metric].value)
        rows = [
            Bar(name, 100 * one.value, colours[name], f"{100 * one.value:+.2f}", (100 * one.ci95[0], 100 * one.ci95[1]))
            for name, one in ((name, changes[name][metric]) for name in order)
        ]
        sentence = f"Points of {metric} that the fused list loses without the source."
        svg = bars(rows, f"contribution of each channel to {metric}")
        yield Plot(f"Added to the first {_PLOTTED[metric]}", sentence, svg)


def _bucket_plots(report: Report, colours: Mapping[str, str]) -> Iterator[Plot]:
    metric = "recall@100"
    filled = {name: bucket for name, bucket in report.numbers.buckets.items() if bucket.n}
    limit = max(scores.ci95[metric][1] for b in filled.values() for scores in b.scores.values() if scores) or 1.0
    for name, bucket in filled.items():
        title, words = BUCKET_WORDS[name]
        present = {ranking: scores for ranking, scores in bucket.scores.items() if scores}
        order = [ranking for ranking in ranking_order(report.numbers.metrics) if ranking in present]
        svg = bars(_bars(present, order, metric, colours), f"{metric}, {words}", limit)
        yield Plot(title, f"{words[0].upper()}{words[1:]}: {bucket.n:,} hidden items.", svg)


def _run_plots(report: Report, details: Details, colours: Mapping[str, str]) -> Iterator[Plot]:
    if details.fusion_weights:
        weights = sorted(details.fusion_weights.items(), key=lambda item: -item[1])
        rows = [Bar(name, weight, colours.get(name, "var(--muted)"), f"{weight:.2f}") for name, weight in weights]
        sentence = (
            "How much each source's list counts when the lists are merged; chosen on validation events, never on the "
            f"test events above. Method: {details.fusion_method.replace('_', ' ') or 'not named'}."
        )
        yield Plot("Weights of the fusion", sentence, bars(rows, "fusion weights"))
    if details.training:
        sentence = (
            "The loss should fall and level off; the validation metric says when to stop, and the ringed epoch is "
            "its best."
        )
        yield Plot("Training of the towers", sentence, training_plot(details.training, "training curve"))
    if report.index:
        sentence = (
            "Each dot is a way to search the item vectors; higher finds more of what an exact search finds, further "
            "left is faster, and the ringed one is used by the release."
        )
        yield Plot(
            "Search index: recall against speed", sentence, index_scatter(report.index, "index recall and latency")
        )
    if report.seconds:
        rows = [Bar(name, seconds, "#7b8794", duration(seconds)) for name, seconds in _longest(report.seconds).items()]
        sentence = (
            "Time that each stage took, in the order they ran; a stage reused from before shows what making it took. "
            "Where stages ran side by side, their sum is more than the clock showed."
        )
        yield Plot("Where the time went", sentence, bars(rows, "seconds by stage"))


def _longest(seconds: Mapping[str, float]) -> dict[str, float]:
    """The stages that take a hundredth of the whole at least, and all others as one."""
    least = sum(seconds.values()) / 100
    kept = {name: value for name, value in seconds.items() if value >= least}
    rest = len(seconds) - len(kept)
    return kept | {f"{rest} shorter ones": sum(seconds.values()) - sum(kept.values())} if rest > 1 else dict(seconds)


def duration(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _bars(scores: Mapping[str, Scores], order: Sequence[str], metric: str, colours: Mapping[str, str]) -> list[Bar]:
    return [
        Bar(
            name,
            scores[name].values[metric],
            colours[name],
            percent(scores[name].values[metric]),
            scores[name].ci95[metric],
        )
        for name in order
    ]
