import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import DataError
from recsys_ray.core.events import Events
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.replay import FUSED, EvaluationConfig, Replay, replay, sample_targets
from recsys_ray.evaluation.summary import bootstrap, bucket_scores, evaluate, gain, scores_of, summarise

CONFIG = EvaluationConfig(bootstrap_samples=400)


def make_replay(ranks, users=None, buckets=None, new_users=None):
    """One target a query."""
    size = len(next(iter(ranks.values())))
    return Replay(
        np.arange(size) if users is None else users,
        np.zeros(size, bool) if new_users is None else new_users,
        np.arange(size),
        np.zeros(size, np.int64) if buckets is None else buckets,
        {name: np.asarray(values, np.float64) for name, values in ranks.items()},
        {name: np.zeros((size, 10), np.int64) for name in ranks},
        num_items=50,
    )


def empty_targets():
    return Targets(np.zeros(0, np.int64), Ragged.empty(0), Ragged.empty(0), Ragged.empty(0), np.zeros(0, bool))


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


def test_buckets_add_up_and_empty_ones_have_no_numbers():
    done = make_replay({"a": [0, 200, 3, np.inf], FUSED: [0, 0, 3, 3]}, buckets=np.array([0, 0, 1, 3]))
    buckets = bucket_scores(done, CONFIG)
    assert {name: bucket.n for name, bucket in buckets.items()} == {"head": 2, "mid": 1, "tail": 0, "cold": 1}
    assert buckets["head"].scores["a"].values["recall@100"] == 0.5
    assert buckets["cold"].scores[FUSED].values["recall@10"] == 1.0
    assert buckets["tail"].scores == {"a": None, FUSED: None}


def test_warm_and_new_users_apart_only_when_some_are_new():
    ranks = {"a": [0, 200, 3], FUSED: [0, 0, 300]}
    buckets = bucket_scores(make_replay(ranks, new_users=np.array([True, False, False])), CONFIG)
    assert (buckets["new_users"].n, buckets["warm_users"].n) == (1, 2)
    assert buckets["warm_users"].scores["a"].values["recall@10"] == 0.5
    assert "new_users" not in bucket_scores(make_replay(ranks), CONFIG)


def test_gain_is_paired_against_the_best_channel():
    rng = np.random.default_rng(0)
    best = rng.integers(0, 20, 300).astype(float)
    better = np.where(np.arange(300) < 30, 0, best)  # the same for nine users in ten
    found = gain(make_replay({"worse": best + 5, "best": best, FUSED: better}), "recall@10", CONFIG)
    assert found.best == "best"
    assert found.difference == pytest.approx((better < 10).mean() - (best < 10).mean())
    assert 0 < found.ci95[0] < found.difference < found.ci95[1] < 0.1


def test_intervals_hold_the_means():
    ranks = np.random.default_rng(0).integers(0, 150, 400)
    scores = scores_of(make_replay({"a": ranks, FUSED: ranks}), CONFIG)["a"]
    assert scores.ci95.keys() == scores.values.keys() - {"coverage@10"}
    for metric, (low, high) in scores.ci95.items():
        assert low <= scores.values[metric] <= high


def test_evaluate_pools_folds_and_keeps_validation_apart(make_retriever, make_targets):
    num_items, users = 20, 30
    rng = np.random.default_rng(0)
    columns = (rng.integers(0, users, 90), rng.integers(0, num_items, 90), np.arange(90), np.ones(90, np.float32))
    events = Events.from_columns(*columns, users, num_items)
    folds = [
        Fold(events, events, make_targets(seed, 9, num_items), make_targets(seed + 50, 12, num_items))
        for seed in (0, 1)
    ]
    retrievers = [make_retriever(seed, num_items) for seed in (0, 1)]
    config = EvaluationConfig(bootstrap_samples=100, max_users=10)
    result = evaluate(retrievers, folds, config)
    assert result.num_queries == 20  # at most ten a fold
    counts = events.item_counts()
    parts = [replay(r, sample_targets(f.test, config), counts, config) for r, f in zip(retrievers, folds, strict=True)]
    expected = np.mean([scores_of(part, config)[FUSED].values["recall@10"] for part in parts])
    assert result.metrics[FUSED].values["recall@10"] == pytest.approx(expected)
    assert result.validation.keys() == result.metrics.keys() == {"first", "second", FUSED}
    assert result.validation != result.metrics
    assert [g.metric for g in result.gains] == ["recall@10", "recall@100"]


def test_no_test_queries_is_an_error_and_no_validation_is_not(make_retriever, make_targets):
    retriever, counts = make_retriever(0, 10), np.ones(10, np.int64)
    nothing = replay(retriever, empty_targets(), counts, CONFIG)
    something = replay(retriever, make_targets(0, 5, 10), counts, CONFIG)
    assert summarise(something, nothing, CONFIG).validation == {}
    with pytest.raises(DataError, match="left no test event"):
        summarise(nothing, something, CONFIG)
