"""How far means would move with other users: resampling users with all their queries (Efron 1979)."""

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import IntArray
from recsys_ray.evaluation.settings import EvaluationConfig

_TAILS = (0.025, 0.975)
_DRAWS_AT_ONCE = 1 << 22

Values = npt.NDArray[np.float64]
Interval = tuple[float, float]


def bootstrap(values: Values, users: IntArray, config: EvaluationConfig) -> tuple[Values, Values]:
    """Percentile intervals of column means.

    Args:
        values: (Q, M) one value a query and column.
        users: (Q,) whose query it is.
        config: Samples and seed.

    Returns:
        Lower and upper bounds, (M,) each.
    """
    low, high = np.quantile(resampled(values, users, config), _TAILS, axis=0)
    return low, high


def resampled(values: Values, users: IntArray, config: EvaluationConfig) -> Values:
    """(S, M) the column means of each resample of the users; see `bootstrap`."""
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
    return np.concatenate(means)


def interval(means: Values) -> Interval:
    """The 95 % percentile interval of (S,) resampled means."""
    low, high = np.quantile(means, _TAILS)
    return float(low), float(high)


def mean_with_interval(values: Values, users: IntArray, config: EvaluationConfig) -> tuple[float, Interval]:
    """The mean of (Q,) values and its 95 % interval."""
    return float(values.mean()), interval(resampled(values[:, None], users, config)[:, 0])
