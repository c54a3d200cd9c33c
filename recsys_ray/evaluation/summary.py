"""From ranks to numbers: metrics with bootstrap intervals, by ranking and by popularity bucket."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import DataError
from recsys_ray.core.metrics import METRICS, coverage
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.replay import BUCKETS, FUSED, SHOWN, EvaluationConfig, Replay, pool, replay, sample_targets
from recsys_ray.retrieval.retriever import Retriever

COVERAGE = f"coverage@{SHOWN}"
WARM_USERS, NEW_USERS = "warm_users", "new_users"
_LEVEL = 0.95
_DRAWS_AT_ONCE = 1 << 22

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]
Rank = Callable[[int, Targets, IntArray], Replay]
"""(fold, its targets, (N,) training events of each item) to where the targets stand."""


@dataclass(frozen=True)
class Scores:
    """The metrics of one ranking.

    Attributes:
        values: Metric name to its mean over the queries; `coverage@10` is a share of the catalogue.
        ci95: Metric name to its 95 % interval, by bootstrap over users; coverage has none.
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
class Gain:
    """How far the fused list is ahead of the best single channel, on the same resampled users.

    Attributes:
        metric: Compared in this metric.
        best: The single channel with the highest value.
        difference: Fused minus best.
        ci95: Its 95 % interval.
    """

    metric: str
    best: str
    difference: float
    ci95: Interval


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
    """

    num_queries: int
    metrics: dict[str, Scores]
    validation: dict[str, Scores]
    buckets: dict[str, Bucket]
    gains: tuple[Gain, ...] = field(default=())


def evaluate(
    retrievers: Sequence[Retriever],
    folds: Sequence[Fold],
    config: EvaluationConfig,
    user_tokens: IntArray | None = None,
) -> Evaluation:
    """Replay test and validation of every fold in this process and summarise the pooled queries.

    Args:
        retrievers: One a fold, fitted on its training events.
        folds: In the same order.
        config: See there.
        user_tokens: (U, T) attribute tokens of all users; None or T = 0 when users have no attributes.

    Raises:
        DataError: When there is no test query, or a channel gives scores of a wrong shape or NaN.
    """

    def rank(fold: int, targets: Targets, train_counts: IntArray) -> Replay:
        return replay(retrievers[fold], targets, train_counts, config, user_tokens)

    return evaluate_with(rank, folds, config)


def evaluate_with(rank: Rank, folds: Sequence[Fold], config: EvaluationConfig) -> Evaluation:
    """`evaluate` by any way of ranking, for example on a cluster."""
    test: list[Replay] = []
    validation: list[Replay] = []
    for index, fold in enumerate(folds):
        counts = fold.train.item_counts()
        test.append(rank(index, sample_targets(fold.test, config), counts))
        validation.append(rank(index, sample_targets(fold.validation, config), counts))
    return summarise(pool(test), pool(validation), config)


def summarise(test: Replay, validation: Replay, config: EvaluationConfig) -> Evaluation:
    """The numbers of a report.

    Raises:
        DataError: When there is no test query.
    """
    if test.num_queries == 0:
        raise DataError("there is nothing to evaluate: the split left no test event; see split.protocol")
    return Evaluation(
        test.num_queries,
        scores_of(test, config),
        scores_of(validation, config) if validation.num_queries else {},
        bucket_scores(test, config),
        tuple(gain(test, metric, config) for metric in ("recall@10", "recall@100")),
    )


def scores_of(done: Replay, config: EvaluationConfig) -> dict[str, Scores]:
    """Every ranking's metrics over all queries of the replay."""
    names = list(done.ranks)
    values = np.stack([_per_query(done, name, metric) for name in names for metric in METRICS], axis=1)
    low, high = bootstrap(values, done.users, config)
    means = values.mean(0)
    result: dict[str, Scores] = {}
    for position, name in enumerate(names):
        columns = {metric: position * len(METRICS) + index for index, metric in enumerate(METRICS)}
        numbers = {metric: float(means[column]) for metric, column in columns.items()}
        numbers[COVERAGE] = coverage(done.shown[name], SHOWN, done.num_items)
        result[name] = Scores(numbers, {metric: (float(low[c]), float(high[c])) for metric, c in columns.items()})
    return result


def bucket_scores(done: Replay, config: EvaluationConfig) -> dict[str, Bucket]:
    """The metrics over the targets of each popularity bucket, and over warm and new users if any user is new."""
    masks = {name: done.buckets == index for index, name in enumerate(BUCKETS)}
    is_new = done.new_users[done.queries]
    if is_new.any():
        masks |= {WARM_USERS: ~is_new, NEW_USERS: is_new}
    buckets: dict[str, Bucket] = {}
    for name, mask in masks.items():
        scores: dict[str, Scores | None] = dict.fromkeys(done.ranks)
        if mask.any():
            scores.update(scores_of(done.select(mask), config))
        buckets[name] = Bucket(int(mask.sum()), scores)
    return buckets


def gain(done: Replay, metric: str, config: EvaluationConfig) -> Gain:
    """The fused list against the channel that is best in `metric`."""
    values = {name: _per_query(done, name, metric) for name in done.ranks}
    fused = values.pop(FUSED)
    best = max(values, key=lambda name: float(values[name].mean()))
    difference = fused - values[best]
    low, high = bootstrap(difference[:, None], done.users, config)
    return Gain(metric, best, float(difference.mean()), (float(low[0]), float(high[0])))


def bootstrap(values: Values, users: IntArray, config: EvaluationConfig) -> tuple[Values, Values]:
    """Percentile intervals of column means, resampling users with all their queries (Efron 1979).

    Args:
        values: (Q, M) one value a query and column.
        users: (Q,) whose query it is.
        config: Samples and seed.

    Returns:
        Lower and upper bounds, (M,) each.
    """
    _, owner = np.unique(users, return_inverse=True)
    num_users = int(owner.max()) + 1
    sums = np.stack([np.bincount(owner, column, num_users) for column in values.T], axis=1)
    counts = np.bincount(owner, minlength=num_users).astype(np.float64)
    rng = np.random.default_rng(config.seed)
    step = max(1, _DRAWS_AT_ONCE // num_users)
    means = []
    for start in range(0, config.bootstrap_samples, step):
        size = min(step, config.bootstrap_samples - start)
        draws = rng.integers(0, num_users, (size, num_users)) + np.arange(size)[:, None] * num_users
        weights = np.bincount(draws.ravel(), minlength=size * num_users).reshape(size, num_users).astype(np.float64)
        means.append((weights @ sums) / (weights @ counts)[:, None])
    low, high = np.quantile(np.concatenate(means), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
    return low, high


def _per_query(done: Replay, name: str, metric: str) -> Values:
    return METRICS[metric](done.ranks[name], done.queries, done.num_queries)
