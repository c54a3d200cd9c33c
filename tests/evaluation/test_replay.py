import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.data.dataset import Targets
from recsys_ray.evaluation.replay import (
    BUCKETS,
    FUSED,
    EvaluationConfig,
    pool,
    popularity_buckets,
    replay,
    sample_targets,
    slice_targets,
)
from recsys_ray.evaluation.summary import scores_of
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.retriever import Retriever

CONFIG = EvaluationConfig(bootstrap_samples=100)


def rank_of(scores, target):
    """Mean rank of `target` among item -> score; infinity when it is not there."""
    if target not in scores:
        return math.inf
    own = scores[target]
    above = sum(score > own for score in scores.values())
    ties = sum(score == own for score in scores.values()) - 1
    return above + ties / 2


def naive_channel(table, history, excluded):
    sums = {item: sum(float(table[i, item]) for i in history) for item in range(table.shape[1])}
    return {item: score for item, score in sums.items() if score > 0 and item not in excluded}


def naive_fused(channels, fusion):
    """Reciprocal rank over each channel's list, equal scores at their mean rank, cut at the fusion's depth."""
    total = {}
    for name, scores in channels.items():
        listed = sorted(scores, key=lambda item, scores=scores: (-scores[item], item))[: fusion.depth]
        for item in listed:
            place = rank_of({other: scores[other] for other in listed}, item)
            total[item] = total.get(item, 0.0) + fusion.weights[name] / (fusion.rrf_k + place + 1)
    return {item: np.float32(score) for item, score in total.items()}


def naive_metrics(ranks):
    """Of one query, from the ranks of its targets."""
    values = {}
    for k in (10, 20, 100):
        found = [rank for rank in ranks if rank < k]
        values[f"recall@{k}"] = len(found) / len(ranks)
        values[f"hit@{k}"] = float(bool(found))
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(ranks))))
        values[f"ndcg@{k}"] = sum(1 / math.log2(rank + 2) for rank in found) / ideal
        values[f"mrr@{k}"] = 1 / (min(found) + 1) if found else 0.0
    return values


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 3),
    st.integers(1, 25),
    st.integers(1, 30),
    st.integers(2, 4),
    st.integers(1, 30),
    st.sampled_from([1, 3000, 10**8]),
)
def test_ranks_and_metrics_equal_a_plain_loop(
    make_retriever, make_targets, seed, num_queries, num_items, levels, depth, block_bytes
):
    retriever = make_retriever(seed, num_items, levels, depth)
    targets = make_targets(seed, num_queries, num_items)
    config = EvaluationConfig(bootstrap_samples=100, block_bytes=block_bytes)
    done = replay(retriever, targets, np.ones(num_items, np.int64), config)
    expected = {name: [] for name in done.ranks}
    for query in range(num_queries):
        history, excluded = targets.history[query].tolist(), set(targets.exclude[query].tolist())
        channels = {n: naive_channel(c.table, history, excluded) for n, c in retriever.channels.items()}
        for name, scores in {**channels, FUSED: naive_fused(channels, retriever.fusion)}.items():
            expected[name].append([rank_of(scores, item) for item in targets.items[query].tolist()])
    for name, ranks in expected.items():
        np.testing.assert_array_equal(done.ranks[name], np.concatenate(ranks))
        values = scores_of(done, config)[name].values
        for metric in values.keys() - {"coverage@10"}:
            assert values[metric] == pytest.approx(
                np.mean([naive_metrics(query)[metric] for query in ranks]), abs=1e-12
            )
        assert values["coverage@10"] == len(np.unique(done.shown[name][done.shown[name] >= 0])) / num_items


def test_equal_to_ir_measures_without_ties(make_retriever, make_targets):
    num_items, rng = 150, np.random.default_rng(3)
    retriever, targets = make_retriever(3, num_items), make_targets(3, 40, num_items)
    for channel in retriever.channels.values():
        channel.table[:] = rng.random(channel.table.shape)  # no two sums are equal
    done = replay(retriever, targets, np.ones(num_items, np.int64), CONFIG)
    qrels = [
        ir_measures.Qrel(str(query), str(item), 1)
        for query, item in zip(targets.items.row_of_value, targets.items.values, strict=True)
    ]
    questions = Queries.of_histories(targets.history, targets.exclude)
    measures = {
        "recall@10": "R@10",
        "ndcg@10": "nDCG@10",
        "recall@100": "R@100",
        "ndcg@20": "nDCG@20",
        "mrr@10": "RR@10",
    }
    for name, channel in retriever.channels.items():
        scores = channel.scores(questions)
        run = [
            ir_measures.ScoredDoc(str(query), str(item), float(scores[query, item]))
            for query, item in zip(*np.nonzero(np.isfinite(scores)), strict=True)
        ]
        parsed = {metric: ir_measures.parse_measure(text) for metric, text in measures.items()}
        theirs = ir_measures.calc_aggregate(list(parsed.values()), qrels, run)
        ours = scores_of(done, CONFIG)[name].values
        for metric, measure in parsed.items():
            assert ours[metric] == pytest.approx(theirs[measure], abs=1e-9), metric


def test_a_target_that_repeats_in_its_own_history_is_a_miss(make_retriever):
    retriever = make_retriever(0, 8)
    for channel in retriever.channels.values():
        channel.table[:] = 0
        channel.table[:, 5] = 9  # everything says 5
        channel.table[:, 6] = 1
    history = Ragged.of([[1, 5], [1, 2]])
    targets = Targets(np.array([0, 1]), history, history, Ragged.of([[5], [5]]), np.zeros(2, bool))
    done = replay(retriever, targets, np.ones(8, np.int64), CONFIG)
    for name in ("first", "second", FUSED):
        np.testing.assert_array_equal(done.ranks[name], [np.inf, 0])
        assert done.shown[name][0].tolist() == [6, *[-1] * 9]
        assert scores_of(done, CONFIG)[name].values["recall@10"] == 0.5


def test_shards_pool_to_the_whole(make_retriever, make_targets):
    retriever, targets = make_retriever(5, 20), make_targets(5, 17, 20)
    counts = np.arange(20)
    whole = replay(retriever, targets, counts, CONFIG)
    parts = [replay(retriever, slice_targets(targets, a, b), counts, CONFIG) for a, b in ((0, 5), (5, 5), (5, 17))]
    pooled = pool(parts)
    for name in ("users", "new_users", "queries", "buckets"):
        np.testing.assert_array_equal(getattr(pooled, name), getattr(whole, name))
    for name in whole.ranks:
        np.testing.assert_array_equal(pooled.ranks[name], whole.ranks[name])
        np.testing.assert_array_equal(pooled.shown[name], whole.shown[name])


def test_pooling_different_channels_or_nothing_is_an_error(make_retriever, make_targets):
    retriever, targets = make_retriever(5, 20), make_targets(5, 3, 20)
    counts = np.ones(20, np.int64)
    done = [replay(one, targets, counts, CONFIG) for one in (retriever, retriever.only(["first"]))]
    with pytest.raises(DataError, match="same channels"):
        pool(done)
    with pytest.raises(DataError, match="no folds"):
        pool([])


def test_select_keeps_the_targets_under_the_mask_and_their_queries(make_retriever, make_targets):
    done = replay(make_retriever(6, 20), make_targets(6, 12, 20), np.ones(20, np.int64), CONFIG)
    mask = np.arange(len(done.queries)) % 3 == 0
    part = done.select(mask)
    np.testing.assert_array_equal(part.users[part.queries], done.users[done.queries][mask])
    np.testing.assert_array_equal(part.ranks[FUSED], done.ranks[FUSED][mask])
    assert set(part.queries) == set(range(part.num_queries))


def test_buckets_by_the_share_of_training_events():
    counts = np.array([50, 20, 20, 5, 5, 0])
    buckets = [BUCKETS[i] for i in popularity_buckets(counts, EvaluationConfig(head_share=0.5, tail_share=0.1))]
    assert buckets == ["head", "mid", "mid", "tail", "tail", "cold"]
    # Equal counts never fall into different buckets, and without any event all items are cold.
    assert set(popularity_buckets(np.full(7, 3), EvaluationConfig())) == {0}
    assert set(popularity_buckets(np.zeros(4, np.int64), EvaluationConfig())) == {3}


def test_sampling_draws_distinct_queries_in_order_and_by_seed(make_targets):
    targets = make_targets(1, 30, 10)
    first, again = (sample_targets(targets, EvaluationConfig(max_users=9)) for _ in range(2))
    assert len(first) == 9
    np.testing.assert_array_equal(first.items.values, again.items.values)
    assert sample_targets(targets, EvaluationConfig(max_users=30)) is targets
    numbered = Targets(np.arange(30), targets.history, targets.exclude, targets.items, targets.new_users)
    users = sample_targets(numbered, EvaluationConfig(max_users=9, seed=4)).users
    assert (np.diff(users) > 0).all()


def test_user_tokens_reach_the_queries_only_when_there_are_some(make_retriever, make_targets):
    seen = []

    class Encoder:
        def encode(self, queries):
            seen.append(queries.user_tokens)
            return {}

    retriever, targets = make_retriever(1, 10), make_targets(1, 4, 10)
    retriever = Retriever(retriever.channels, (Encoder(),), retriever.fusion)
    tokens = np.arange(10)[:, None] + 1
    for given_tokens in (None, tokens, np.zeros((10, 0), np.int64)):
        replay(retriever, targets, np.ones(10, np.int64), CONFIG, given_tokens)
    assert seen[0] is None
    np.testing.assert_array_equal(seen[1], tokens[targets.users])
    assert seen[2] is None


def test_wrong_scores_are_refused(make_retriever, make_targets):
    retriever, targets = make_retriever(1, 10), make_targets(1, 4, 10)
    with pytest.raises(DataError, match=r"shape \(4, 10\); expected \(4, 11\)"):
        replay(retriever, targets, np.ones(11, np.int64), CONFIG)
    retriever.channels["second"].table[:] = np.nan
    with pytest.raises(DataError, match=r"'second' gave .* NaN"):
        replay(retriever, targets, np.ones(10, np.int64), CONFIG)


def test_a_channel_may_not_be_called_fused(make_retriever, make_targets):
    channel = make_retriever(1, 10).channels["first"]
    retriever = Retriever({FUSED: channel}, (), Fusion(weights={FUSED: 1.0}))
    with pytest.raises(ConfigError, match="kept for the fused ranking"):
        replay(retriever, make_targets(1, 4, 10), np.ones(10, np.int64), CONFIG)


def test_shares_above_one_are_refused():
    with pytest.raises(ConfigError, match="head_share \\+ tail_share of at most 1"):
        EvaluationConfig.parse({"head_share": 0.7, "tail_share": 0.4})
