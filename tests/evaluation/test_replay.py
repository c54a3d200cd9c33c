import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.data.dataset import Targets
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.replay import BUCKETS, FUSED, block_size, pool, popularity_buckets, replay, without
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import LIST_METRICS, scores_of
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


def naive_list_metrics(shown, num_items, counts):
    """Of the first ten items of every query, -1 where there are fewer."""
    exposure = [sum(item in query for query in shown.tolist()) for item in range(num_items)]
    total = sum(exposure)
    pairs = sum(abs(one - other) for one in exposure for other in exposure)
    bits = [[-math.log2(max(counts[i], 1) / sum(counts)) for i in query if i >= 0] for query in shown.tolist()]
    return {
        "coverage@10": sum(count > 0 for count in exposure) / num_items,
        "gini@10": pairs / (2 * num_items * total) if total else 0.0,
        "novelty@10": float(np.mean([np.mean(query) for query in bits if query])) if total else 0.0,
    }


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
    counts = np.random.default_rng(seed).integers(0, 9, num_items) + (np.arange(num_items) == 0)
    only_second = Fusion(method="reciprocal_rank", depth=depth, weights={"second": 1.0})
    done = replay(retriever, Questions("test", targets, counts, without={"first": only_second}), config)
    expected = {name: [] for name in done.ranks}
    for query in range(num_queries):
        history, excluded = targets.history[query].tolist(), set(targets.exclude[query].tolist())
        channels = {n: naive_channel(c.table, history, excluded) for n, c in retriever.channels.items()}
        fused = naive_fused(channels, retriever.fusion)
        fewer = naive_fused({"second": channels["second"]}, only_second)
        for name, scores in {**channels, FUSED: fused, without("first"): fewer}.items():
            expected[name].append([rank_of(scores, item) for item in targets.items[query].tolist()])
    for name, ranks in expected.items():
        np.testing.assert_array_equal(done.ranks[name], np.concatenate(ranks))
        values = scores_of(done, config)[name].values
        for metric in values.keys() - set(LIST_METRICS):
            assert values[metric] == pytest.approx(
                np.mean([naive_metrics(query)[metric] for query in ranks]), abs=1e-12
            )
        for metric, value in naive_list_metrics(done.shown[name], num_items, counts.tolist()).items():
            assert values[metric] == pytest.approx(value, abs=1e-9), metric


def test_equal_to_ir_measures_without_ties(make_retriever, make_questions):
    num_items, rng = 150, np.random.default_rng(3)
    retriever, asked = make_retriever(3, num_items), make_questions(3, 40, num_items)
    targets = asked.targets
    for channel in retriever.channels.values():
        channel.table[:] = rng.random(channel.table.shape)  # no two sums are equal
    done = replay(retriever, asked, CONFIG)
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
    done = replay(retriever, Questions("test", targets, np.ones(8, np.int64)), CONFIG)
    for name in ("first", "second", FUSED):
        np.testing.assert_array_equal(done.ranks[name], [np.inf, 0])
        assert done.shown[name][0].tolist() == [6, *[-1] * 9]
        assert scores_of(done, CONFIG)[name].values["recall@10"] == 0.5


def test_shards_pool_to_the_whole(make_retriever, make_questions):
    retriever, asked = make_retriever(5, 20), make_questions(5, 17, 20, np.arange(20))
    whole = replay(retriever, asked, CONFIG)
    pooled = pool([replay(retriever, asked.slice(a, b), CONFIG) for a, b in ((0, 5), (5, 5), (5, 17))])
    for name in ("users", "new_users", "queries", "items", "buckets"):
        np.testing.assert_array_equal(getattr(pooled, name), getattr(whole, name))
    for name in whole.ranks:
        np.testing.assert_array_equal(pooled.ranks[name], whole.ranks[name])
        np.testing.assert_array_equal(pooled.shown[name], whole.shown[name])
        np.testing.assert_array_equal(pooled.novelty[name], whole.novelty[name])


def test_pooling_different_channels_or_nothing_is_an_error(make_retriever, make_questions):
    retriever, asked = make_retriever(5, 20), make_questions(5, 3, 20)
    done = [replay(one, asked, CONFIG) for one in (retriever, retriever.only(["first"]))]
    with pytest.raises(DataError, match="same channels"):
        pool(done)
    with pytest.raises(DataError, match="no folds"):
        pool([])


def test_select_keeps_the_targets_under_the_mask_and_their_queries(make_retriever, make_questions):
    done = replay(make_retriever(6, 20), make_questions(6, 12, 20), CONFIG)
    mask = np.arange(len(done.queries)) % 3 == 0
    part = done.select(mask)
    np.testing.assert_array_equal(part.users[part.queries], done.users[done.queries][mask])
    np.testing.assert_array_equal(part.ranks[FUSED], done.ranks[FUSED][mask])
    np.testing.assert_array_equal(part.items, done.items[mask])
    assert set(part.queries) == set(range(part.num_queries))


def test_buckets_by_the_share_of_training_events():
    counts = np.array([50, 20, 20, 5, 5, 0])
    buckets = [BUCKETS[i] for i in popularity_buckets(counts, EvaluationConfig(head_share=0.5, tail_share=0.1))]
    assert buckets == ["head", "mid", "mid", "tail", "tail", "cold"]
    # Equal counts never fall into different buckets, and without any event all items are cold.
    assert set(popularity_buckets(np.full(7, 3), EvaluationConfig())) == {0}
    assert set(popularity_buckets(np.zeros(4, np.int64), EvaluationConfig())) == {3}


def test_blocks_hold_the_scores_of_all_items_or_the_lists_of_all_channels():
    config = EvaluationConfig(block_bytes=10**6)
    assert block_size(channels=2, depth=10, num_items=1000, config=config) * 1000 * 8 <= 10**6
    assert block_size(channels=2, depth=10, num_items=10**9, config=config) == 1
    deep, shallow = (block_size(channels=8, depth=depth, num_items=50, config=config) for depth in (200, 10))
    assert deep < shallow


def test_wrong_scores_are_refused(make_retriever, make_questions):
    retriever, asked = make_retriever(1, 10), make_questions(1, 4, 10)
    with pytest.raises(DataError, match=r"shape \(4, 10\); expected \(4, 11\)"):
        replay(retriever, make_questions(1, 4, 10, np.ones(11, np.int64)), CONFIG)
    retriever.channels["second"].table[:] = np.nan
    with pytest.raises(DataError, match=r"'second' gave .* NaN"):
        replay(retriever, asked, CONFIG)


def test_a_channel_may_not_be_called_fused(make_retriever, make_questions):
    channel = make_retriever(1, 10).channels["first"]
    retriever = Retriever({FUSED: channel}, (), Fusion(weights={FUSED: 1.0}))
    with pytest.raises(ConfigError, match="kept for the fused ranking"):
        replay(retriever, make_questions(1, 4, 10), CONFIG)


def test_shares_above_one_are_refused():
    with pytest.raises(ConfigError, match="head_share \\+ tail_share of at most 1"):
        EvaluationConfig.parse({"head_share": 0.7, "tail_share": 0.4})
