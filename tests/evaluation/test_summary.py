import dataclasses
from functools import partial

import numpy as np
import pytest

from recsys_ray.core.errors import DataError
from recsys_ray.evaluation.questions import WHOLE
from recsys_ray.evaluation.replay import BUCKETS, FUSED, Replay, replay, without
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import (
    CHANGES,
    LIST_METRICS,
    FoldQuestions,
    Replays,
    bucket_scores,
    contributions,
    gain,
    replay_folds,
    scores_of,
    summarise,
)
from recsys_ray.retrieval.fusion import Fusion

CONFIG = EvaluationConfig(bootstrap_samples=400)


def make_replay(ranks, users=None, buckets=None, new_users=None):
    """One target a query."""
    size = len(next(iter(ranks.values())))
    return Replay(
        np.arange(size) if users is None else users,
        np.zeros(size, bool) if new_users is None else new_users,
        np.arange(size),
        np.zeros(size, np.int64),
        np.zeros(size, np.int64) if buckets is None else buckets,
        {name: np.asarray(values, np.float64) for name, values in ranks.items()},
        {name: np.zeros((size, 10), np.int64) for name in ranks},
        {name: np.full(size, 2.5) for name in ranks},
        num_items=50,
    )


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
    assert found.difference.value == pytest.approx((better < 10).mean() - (best < 10).mean())
    assert 0 < found.difference.ci95[0] < found.difference.value < found.difference.ci95[1] < 0.1


def test_contribution_is_what_the_fused_list_loses_without_the_channel():
    fused = np.zeros(200)
    ranks = {"a": fused, "b": fused, FUSED: fused, without("a"): np.where(np.arange(200) < 40, 50, 0.0)}
    found = contributions(make_replay(ranks), CONFIG)
    assert found.keys() == {"a"}  # nothing is said of b, which was not left out
    assert found["a"].keys() == set(CHANGES)
    assert found["a"]["recall@10"].value == pytest.approx(0.2)
    assert found["a"]["recall@10"].ci95[0] > 0.1
    assert found["a"]["recall@100"].value == 0


def test_intervals_hold_the_means():
    ranks = np.random.default_rng(0).integers(0, 150, 400)
    scores = scores_of(make_replay({"a": ranks, FUSED: ranks}), CONFIG)["a"]
    assert scores.ci95.keys() == scores.values.keys() - set(LIST_METRICS)
    for metric, (low, high) in scores.ci95.items():
        assert low <= scores.values[metric] <= high


def test_folds_are_pooled_and_parts_kept_apart(make_retriever, make_questions):
    num_items = 20
    others = {"first": Fusion(weights={"second": 1.0})}
    folds = []
    for seed in (0, 1):
        test, validation = make_questions(seed, 9, num_items), make_questions(seed + 50, 12, num_items)
        folds.append(FoldQuestions(test, validation, dataclasses.replace(test.sample(5, 0), without=others)))
    retrievers = [make_retriever(seed, num_items) for seed in (0, 1)]
    replays = replay_folds((partial(replay, one, config=CONFIG) for one in retrievers), folds)
    result = summarise(replays, CONFIG)
    parts = [replay(r, f.test, CONFIG) for r, f in zip(retrievers, folds, strict=True)]
    expected = np.mean([scores_of(part, CONFIG)[FUSED].values["recall@10"] for part in parts])
    assert result.num_queries == 18
    assert result.metrics[FUSED].values["recall@10"] == pytest.approx(expected)
    assert result.validation.keys() == result.metrics.keys() == {"first", "second", FUSED}
    assert result.validation != result.metrics
    assert [g.metric for g in result.gains] == ["recall@10", "recall@100"]
    assert result.contributions.keys() == {"first"}
    assert list(result.short) == ["0", "1", "2", WHOLE]
    assert {bucket.n for bucket in result.short.values()} == {sum(len(f.sample.targets.items.values) for f in folds)}
    assert all(bucket.scores.keys() == result.metrics.keys() for bucket in result.short.values())
    assert result.short["0"].scores["first"].values["recall@100"] == 0  # it answers to a history
    assert result.refit is None


def test_cold_targets_are_also_ranked_among_cold_items(make_retriever, make_questions):
    counts = np.where(np.arange(30) < 20, 1, 0)
    asked = make_questions(5, 40, 30, counts)
    rank = partial(replay, make_retriever(5, 30), config=CONFIG)
    done = replay_folds([rank], [FoldQuestions(asked, asked)])
    assert (done.test.buckets[done.test.items >= 20] == BUCKETS.index("cold")).all()
    assert done.cold.items.tolist() == done.test.items[done.test.items >= 20].tolist()
    for name, ranks in done.cold.ranks.items():
        assert (ranks <= done.test.ranks[name][done.test.items >= 20]).all()
        assert ranks[np.isfinite(ranks)].max() < 10
        shown = done.cold.shown[name]
        assert shown[shown >= 0].min() >= 20
    summary = summarise(done, CONFIG)
    assert summary.among_cold.n == summary.buckets["cold"].n > 0
    warm = make_questions(5, 40, 30)
    assert summarise(replay_folds([rank], [FoldQuestions(warm, warm)]), CONFIG).among_cold is None


def test_refit_stands_beside_strict():
    strict, refit = ({"a": ranks, FUSED: ranks} for ranks in (np.full(300, 20.0), np.arange(300) % 40.0))
    found = summarise(Replays(make_replay(strict), make_replay(strict), refit=make_replay(refit)), CONFIG)
    assert found.metrics[FUSED].values["recall@10"] == 0
    assert found.refit[FUSED].values["recall@10"] == pytest.approx(80 / 300)
    assert found.refit_gain["recall@10"].value == pytest.approx(80 / 300)
    assert found.refit_gain["recall@100"].value == 0


def test_no_test_queries_is_an_error_and_no_validation_is_not(make_retriever, make_questions):
    retriever, asked = make_retriever(0, 10), make_questions(0, 5, 10)
    nothing, something = replay(retriever, asked.slice(0, 0), CONFIG), replay(retriever, asked, CONFIG)
    assert summarise(Replays(something, nothing), CONFIG).validation == {}
    with pytest.raises(DataError, match="left no test event"):
        summarise(Replays(nothing, something), CONFIG)
