"""Parts of a report as tables that the page and the terminal show alike."""

from collections.abc import Iterator, Mapping
from typing import Any

from recsys_ray.evaluation.contents import Report, Section
from recsys_ray.evaluation.questions import ATTRIBUTES, WHOLE
from recsys_ray.evaluation.replay import FUSED
from recsys_ray.evaluation.summary import CHANGES, NOVELTY, Bucket, Difference, Scores

COLD_METRICS = ("recall@10", "ndcg@10", "recall@20", "recall@100")
SHORT_METRICS = ("recall@10", "recall@100")
_KNOWN = {
    "0": "nothing",
    ATTRIBUTES: "attributes",
    "1": "last event",
    "2": "last two",
    WHOLE: "all",
}


def sections(report: Report) -> list[Section]:
    """What the report has beside its metrics and popularity buckets, in the order it should be read."""
    own = [cold_section(report), contribution_section(report), *short_sections(report), refit_section(report)]
    found = [*own, *report.sections]
    return [section for section in found if section is not None]


def cold_section(report: Report) -> Section | None:
    """How well new items are told apart; None where no test question looks for one."""
    cold = report.numbers.among_cold
    if cold is None:
        return None
    return Section(
        "Cold items among themselves",
        f"{cold.n:,} hidden items without any training event, found when only such items are ranked: what an arrivals "
        "shelf would show. In the table by popularity they compete with the whole catalogue.",
        ("source", *COLD_METRICS),
        tuple(
            (name, *(_value(cold, name, metric) for metric in COLD_METRICS))
            for name in ranking_order(report.numbers.metrics)
        ),
    )


def contribution_section(report: Report) -> Section | None:
    """What the fused list would lose without each channel; None where it was not measured."""
    changes = report.numbers.contributions
    if not changes:
        return None
    order = sorted(changes, key=lambda name: -changes[name]["recall@100"].value)
    return Section(
        "What each channel adds",
        "Points that the fused list loses when the channel is left out and the others get weights of their own on "
        "validation, for a sample of the test users; ± is half of the 95% interval.",
        ("channel", *CHANGES),
        tuple((name, *(points(changes[name][metric]) for metric in CHANGES)) for name in order),
    )


def short_sections(report: Report) -> Iterator[Section]:
    """What is found for users of whom little is known."""
    for metric in SHORT_METRICS if report.numbers.short else ():
        buckets = report.numbers.short
        yield Section(
            f"{metric} by what is known of the user",
            f"The same {next(iter(buckets.values())).n:,} questions, asked with the end of the history alone. What the "
            "user met stays out of the candidates.",
            ("source", *(_KNOWN[known] for known in buckets)),
            tuple(
                (name, *(_value(bucket, name, metric) for bucket in buckets.values()))
                for name in ranking_order(report.numbers.metrics)
            ),
        )


def refit_section(report: Report) -> Section | None:
    """The strict numbers beside those of the second fit; None without one."""
    strict, refit = report.numbers.metrics, report.numbers.refit
    if refit is None:
        return None
    gains = ", ".join(f"{points(gain)} points of {metric}" for metric, gain in report.numbers.refit_gain.items())
    return Section(
        "Strict and refit",
        "Strict: fitted on training events alone. Refit: fitted once more on train and validation, with the settings "
        f"and weights that validation chose. Fused, refit minus strict: {gains}.",
        ("source", *(f"{metric}, {fit}" for metric in CHANGES for fit in ("strict", "refit"))),
        tuple(
            (name, *(scores[name].values[metric] for metric in CHANGES for scores in (strict, refit)))
            for name in ranking_order(strict)
        ),
    )


def channel_section(report: Report) -> Section | None:
    """The settings that validation chose for each channel; None where no channel was tuned."""
    if not any(channel.get("tuning") for channel in report.channels.values()):
        return None
    return Section(
        "How the channels were tuned",
        "Settings that validation chose; in brackets what they were before, where that differs. The objective is that "
        "of validation, before and after.",
        ("channel", "settings", "before", "after", "tried"),
        tuple((name, *_tuned(channel.get("tuning"))) for name, channel in report.channels.items()),
    )


def ranking_order(metrics: Mapping[str, Scores]) -> list[str]:
    """Fused first, then the channels from best to worst in recall@100."""
    return sorted(metrics, key=lambda name: (name != FUSED, -metrics[name].values["recall@100"], name))


def points(difference: Difference) -> str:
    """A difference of shares in points, and half of its interval."""
    low, high = difference.ci95
    return f"{100 * difference.value:+.2f} ± {50 * (high - low):.2f}"


def number(value: float | None, metric: str = "") -> str:
    """A metric as people read it."""
    if value is None:
        return "-"
    return f"{value:.2f}" if metric == NOVELTY else f"{value:.4f}"


def cell(value: str | float | None) -> str:
    """A cell of a section as people read it."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:,}" if isinstance(value, int) else number(value)


def _value(bucket: Bucket, name: str, metric: str) -> float | None:
    scores = bucket.scores[name]
    return None if scores is None else scores.values[metric]


def _tuned(tuning: Mapping[str, Any] | None) -> tuple[str | float | None, ...]:
    if tuning is None:
        return ("as configured", None, None, None)
    before, after = tuning["start"], tuning["best"]
    return (
        ", ".join(_setting(name, value, before["settings"][name]) for name, value in after["settings"].items()),
        before["objective"],
        after["objective"],
        f"{tuning['trials']} in {tuning['seconds']:.0f} s",
    )


def _setting(name: str, value: Any, before: Any) -> str:
    words = name.replace("_", " ")
    return f"{words} {_plain(value)}" if value == before else f"{words} {_plain(value)} ({_plain(before)})"


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
