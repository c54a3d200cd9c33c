import numpy as np
import pytest

from recsys_ray.evaluation.bootstrap import bootstrap, mean_with_interval, resampled
from recsys_ray.evaluation.settings import EvaluationConfig

CONFIG = EvaluationConfig(bootstrap_samples=400)


def test_bootstrap_agrees_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, (5000, 1))
    low, high = bootstrap(values, np.arange(5000), EvaluationConfig(bootstrap_samples=4000))
    half = 1.96 * values.std() / np.sqrt(5000)
    assert low[0] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high[0] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_bootstrap_resamples_users_not_queries():
    values = np.random.default_rng(1).random((200, 2))
    alone = bootstrap(values, np.arange(200), CONFIG)
    thrice = bootstrap(np.tile(values, (3, 1)), np.tile(np.arange(200), 3), CONFIG)
    np.testing.assert_allclose(alone, thrice)  # the same users asked thrice tell nothing new


def test_bootstrap_repeats_with_its_seed():
    values, users = np.random.default_rng(2).random((50, 1)), np.arange(50)
    first, again, other = (bootstrap(values, users, EvaluationConfig(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (np.array(first) != np.array(other)).any()


def test_intervals_are_quantiles_of_the_resampled_means():
    values, users = np.random.default_rng(3).random((40, 2)), np.arange(40) % 25
    means = resampled(values, users, CONFIG)
    assert means.shape == (400, 2)
    low, high = bootstrap(values, users, CONFIG)
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975], axis=0))
    mean, interval = mean_with_interval(values[:, 0], users, CONFIG)
    assert mean == values[:, 0].mean()
    assert interval == pytest.approx((low[0], high[0]))
