"""From ranks to numbers: metrics with bootstrap intervals, by ranking, by popularity bucket and by what was known."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import DataError
from recsys_ray.core.metrics import METRICS, coverage, exposure, gini
from recsys_ray.evaluation.bootstrap import Interval, Values, bootstrap, mean_with_interval
from recsys_ray.evaluation.questions import WHOLE, Questions
from recsys_ray.evaluation.replay import BUCKETS, FUSED, SHOWN, Replay, pool, without
from recsys_ray.evaluation.settings import EvaluationConfig

COVERAGE, NOVELTY, GINI = f"coverage@{SHOWN}", f"novelty@{SHOWN}", f"gini@{SHOWN}"
LIST_METRICS = (COVERAGE, NOVELTY, GINI)
"""Metrics of what is shown, whatever was looked for."""
WARM_USERS, NEW_USERS = "warm_users", "new_users"
CHANGES = ("recall@10", "ndcg@10", "recall@100")
"""The metrics that a channel's contribution is told in."""

Ranker = Callable[[Questions], Replay]
"""Ranks the catalogue for questions by what was fitted on one fold, here or on a cluster."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one ranking.

    Attributes:
        values: Metric name to its mean over the queries; `coverage@10` is a share of the catalogue, `novelty@10` in
            bits, `gini@10` that of how often each item of the catalogue is shown.
        ci95: Metric name to its 95 % interval, by bootstrap over users; what is shown has none.
    """

    values: dict[str, float]
    ci95: dict[str, Interval]


@dataclass(frozen=True)
class Bucket:
    """The metrics over part of the targets, every ranking None where there are none.

    Attributes:
        n: How many targets.
        scores: Ranking to its metrics.
    """

    n: int
    scores: dict[str, Scores | None]


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, and its 95 % interval by bootstrap over users."""

    value: float
    ci95: Interval


@dataclass(frozen=True)
class Gain:
    """How far the fused list is ahead of the best single channel, on the same resampled users.

    Attributes:
        metric: Compared in this metric.
        best: The single channel with the highest value.
        difference: Fused minus best.
    """

    metric: str
    best: str
    difference: Difference


@dataclass(frozen=True)
class Replays:
    """Where all targets stand, folds pooled.

    Attributes:
        test: Every test question.
        validation: Every validation question.
        sample: A sample of the test questions, with the fused lists that leave one channel out; None without.
        short: The same sample with a short history, see `Questions.short`.
        refit: Every test question, ranked by what was also fitted on validation; None without.
        cold: The test questions for items without a training event, among such items alone; None without.
    """

    test: Replay
    validation: Replay
    sample: Replay | None = None
    short: dict[str, Replay] = field(default_factory=dict)
    refit: Replay | None = None
    cold: Replay | None = None


@dataclass(frozen=True)
class Evaluation:
    """All numbers of an evaluation.

    Attributes:
        num_queries: Test queries.
        metrics: Ranking to metrics, on test.
        validation: The same on validation; empty where the split has no validation.
        buckets: Popularity bucket to metrics, on test; `warm_users` and `new_users` beside them when there
            are new users.
        gains: Fused against the best single channel.
        contributions: Channel to metric to what the fused list gains by it: the fused list minus that of the other
            channels with weights of their own; on the sample.
        short: What is known of the user ("0", "attributes", "1", "2", "all") to metrics; on the sample.
        refit: Ranking to metrics on test after the second fit; None without.
        refit_gain: Metric to how far the second fit's fused list is ahead.
        among_cold: The metrics on test of items without a training event, when only such items are ranked; None where
            none is sought.
    """

    num_queries: int
    metrics: dict[str, Scores]
    validation: dict[str, Scores]
    buckets: dict[str, Bucket]
    gains: tuple[Gain, ...] = ()
    contributions: dict[str, dict[str, Difference]] = field(default_factory=dict)
    short: dict[str, Bucket] = field(default_factory=dict)
    refit: dict[str, Scores] | None = None
    refit_gain: dict[str, Difference] = field(default_factory=dict)
    among_cold: Bucket | None = None


@dataclass(frozen=True)
class FoldQuestions:
    """What is asked in one fold; `sample` is part of `test`, None where nothing is asked of a sample."""

    test: Questions
    validation: Questions
    sample: Questions | None = None


def replay_folds(rankers: Iterable[Ranker], folds: Sequence[FoldQuestions]) -> Replays:
    """Rank test, its cold items apart, validation and the sample of every fold, and pool them.

    Args:
        rankers: One a fold, by what was fitted on its training events; each is let go before the next is taken.
        folds: In the same order.
    """
    test, validation, sample, cold = [], [], [], []
    short: dict[str, list[Replay]] = {}
    for rank, fold in zip(rankers, folds, strict=True):
        test.append(rank(fold.test))
        validation.append(rank(fold.validation))
        if len(new := fold.test.among_cold()):
            cold.append(rank(new))
        if fold.sample is not None:
            sample.append(rank(fold.sample))
            for known, questions in fold.sample.short().items():
                short.setdefault(known, []).append(rank(questions))
    return Replays(
        pool(test),
        pool(validation),
        pool(sample) if sample else None,
        {known: pool(parts) for known, parts in short.items()},
        cold=pool(cold) if cold else None,
    )


def summarise(replays: Replays, config: EvaluationConfig) -> Evaluation:
    """The numbers of a report.

    Raises:
        DataError: When there is no test query.
    """
    test, validation = replays.test, replays.validation
    if test.num_queries == 0:
        raise DataError("there is nothing to evaluate: the split left no test event; see split.protocol")
    return Evaluation(
        num_queries=test.num_queries,
        metrics=scores_of(test, config),
        validation=scores_of(validation, config) if validation.num_queries else {},
        buckets=bucket_scores(test, config),
        gains=tuple(gain(test, metric, config) for metric in ("recall@10", "recall@100")),
        contributions={} if replays.sample is None else contributions(replays.sample, config),
        short=_short_scores(replays, config),
        refit=None if replays.refit is None else scores_of(replays.refit, config),
        refit_gain={} if replays.refit is None else _refit_gain(test, replays.refit, config),
        among_cold=None if replays.cold is None else _bucket(replays.cold, config),
    )


def scores_of(done: Replay, config: EvaluationConfig) -> dict[str, Scores]:
    """Every ranking's metrics over all queries of the replay."""
    names = list(done.ranks)
    values = np.stack([per_query(done, name, metric) for name in names for metric in METRICS], axis=1)
    low, high = bootstrap(values, done.users, config)
    means = values.mean(0)
    result: dict[str, Scores] = {}
    for position, name in enumerate(names):
        columns = {metric: position * len(METRICS) + index for index, metric in enumerate(METRICS)}
        numbers = {metric: float(means[column]) for metric, column in columns.items()}
        numbers |= _of_what_is_shown(done, name)
        result[name] = Scores(numbers, {metric: (float(low[c]), float(high[c])) for metric, c in columns.items()})
    return result


def bucket_scores(done: Replay, config: EvaluationConfig) -> dict[str, Bucket]:
    """The metrics over the targets of each popularity bucket, and over warm and new users if any user is new."""
    masks = {name: done.buckets == index for index, name in enumerate(BUCKETS)}
    is_new = done.new_users[done.queries]
    if is_new.any():
        masks |= {WARM_USERS: ~is_new, NEW_USERS: is_new}
    return {name: _bucket(done.select(mask), config) for name, mask in masks.items()}


def gain(done: Replay, metric: str, config: EvaluationConfig) -> Gain:
    """The fused list against the channel that is best in `metric`."""
    values = {name: per_query(done, name, metric) for name in done.ranks}
    fused = values.pop(FUSED)
    best = max(values, key=lambda name: float(values[name].mean()))
    return Gain(metric, best, difference(fused, values[best], done.users, config))


def contributions(sample: Replay, config: EvaluationConfig) -> dict[str, dict[str, Difference]]:
    """Channel to metric to the fused list minus the fused list without that channel."""
    return {
        channel: {
            metric: difference(
                per_query(sample, FUSED, metric), per_query(sample, without(channel), metric), sample.users, config
            )
            for metric in CHANGES
        }
        for channel in sample.ranks
        if without(channel) in sample.ranks
    }


def difference(first: Values, second: Values, users: IntArray, config: EvaluationConfig) -> Difference:
    """First minus second, (Q,) values of the same queries of these users."""
    return Difference(*mean_with_interval(first - second, users, config))


def per_query(done: Replay, name: str, metric: str) -> Values:
    """(Q,) one metric of one ranking."""
    return METRICS[metric](done.ranks[name], done.queries, done.num_queries)


def _of_what_is_shown(done: Replay, name: str) -> dict[str, float]:
    shown, bits = done.shown[name], done.novelty[name]
    anything = ~np.isnan(bits)
    return {
        COVERAGE: coverage(shown, SHOWN, done.num_items),
        NOVELTY: float(bits[anything].mean()) if anything.any() else 0.0,
        GINI: gini(exposure(shown, SHOWN, done.num_items)),
    }


def _bucket(done: Replay, config: EvaluationConfig) -> Bucket:
    count = len(done.queries)
    scores: dict[str, Scores | None] = dict.fromkeys(done.ranks)
    if count:
        scores.update(scores_of(done, config))
    return Bucket(count, scores)


def _short_scores(replays: Replays, config: EvaluationConfig) -> dict[str, Bucket]:
    sample = replays.sample
    if sample is None:
        return {}
    whole = replace(sample, ranks={name: sample.ranks[name] for name in replays.test.ranks})
    return {known: _bucket(done, config) for known, done in {**replays.short, WHOLE: whole}.items()}


def _refit_gain(test: Replay, refit: Replay, config: EvaluationConfig) -> dict[str, Difference]:
    return {
        metric: difference(per_query(refit, FUSED, metric), per_query(test, FUSED, metric), test.users, config)
        for metric in CHANGES
    }
