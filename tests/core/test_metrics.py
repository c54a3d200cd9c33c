"""Against plain loops over sorted lists, written from the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from recsys_ray.core import metrics

SCORES = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 6), st.integers(1, 9)), elements=st.sampled_from([-np.inf, 0, 1, 2, 3])
)


def loop_rank(scores, target):
    if scores[target] == -math.inf:
        return math.inf
    order = sorted(range(len(scores)), key=lambda item: -scores[item])
    ties = [place for place, item in enumerate(order) if scores[item] == scores[target]]
    return sum(ties) / len(ties)


@given(SCORES, st.data())
def test_mean_ranks(scores, data):
    targets = np.array([data.draw(st.integers(0, scores.shape[1] - 1)) for _ in range(len(scores))])
    expected = [loop_rank(row.tolist(), target) for row, target in zip(scores, targets, strict=True)]
    assert metrics.mean_ranks(scores, targets).tolist() == expected


@given(SCORES, st.data())
def test_mean_ranks_of_several_targets_a_row(scores, data):
    shape = st.tuples(st.integers(0, len(scores) - 1), st.integers(0, scores.shape[1] - 1))
    pairs = np.array(data.draw(st.lists(shape, max_size=8)), np.int64).reshape(-1, 2)
    expected = [loop_rank(scores[row].tolist(), target) for row, target in pairs.tolist()]
    assert metrics.mean_ranks(scores, pairs[:, 1], pairs[:, 0]).tolist() == expected


@given(SCORES, st.data())
def test_list_ranks_equal_mean_ranks_when_the_list_is_the_whole_catalogue(scores, data):
    targets = np.array([data.draw(st.integers(0, scores.shape[1] - 1)) for _ in range(len(scores))])
    order = np.argsort(-scores, axis=1, kind="stable")
    sorted_scores = np.take_along_axis(scores, order, 1)
    rows = np.where(np.isneginf(sorted_scores), -1, order)
    assert metrics.list_ranks(rows, sorted_scores, targets).tolist() == metrics.mean_ranks(scores, targets).tolist()


QUERIES = st.lists(
    st.lists(st.one_of(st.integers(0, 30).map(float), st.just(math.inf)), min_size=1, max_size=5),
    min_size=1,
    max_size=6,
)


def flat(queries):
    ranks = np.array([rank for query in queries for rank in query])
    owner = np.array([place for place, query in enumerate(queries) for _ in query])
    return ranks, owner, len(queries)


@given(QUERIES, st.integers(1, 12))
def test_metrics_against_loops(queries, k):
    ranks, owner, count = flat(queries)
    recall = [sum(rank < k for rank in query) / len(query) for query in queries]
    hit = [float(any(rank < k for rank in query)) for query in queries]
    mrr = [1 / (min(query) + 1) if min(query) < k else 0.0 for query in queries]
    ndcg = [
        sum(1 / math.log2(rank + 2) for rank in query if rank < k)
        / sum(1 / math.log2(place + 2) for place in range(min(len(query), k)))
        for query in queries
    ]
    assert metrics.recall(ranks, owner, count, k) == pytest.approx(recall)
    assert metrics.hit(ranks, owner, count, k) == pytest.approx(hit)
    assert metrics.mrr(ranks, owner, count, k) == pytest.approx(mrr)
    assert metrics.ndcg(ranks, owner, count, k) == pytest.approx(ndcg)


@given(QUERIES)
def test_the_named_metrics_lie_between_0_and_1_and_grow_with_k(queries):
    ranks, owner, count = flat([sorted(set(query)) for query in queries])
    values = {name: metric(ranks, owner, count) for name, metric in metrics.METRICS.items()}
    for value in values.values():
        assert ((value >= 0) & (value <= 1 + 1e-9)).all()
    assert (values["recall@10"] <= values["recall@20"]).all()
    assert (values["recall@20"] <= values["recall@100"]).all()
    assert (values["mrr@10"] <= values["hit@10"]).all()


def test_perfect_and_hopeless():
    perfect = (np.array([0.0, 1.0, 0.0]), np.array([0, 0, 1]), 2)
    hopeless = (np.array([np.inf, np.inf]), np.array([0, 1]), 2)
    for name, metric in metrics.METRICS.items():
        assert metric(*perfect).tolist() == [1.0, 1.0], name
        assert metric(*hopeless).tolist() == [0.0, 0.0], name


def test_coverage_counts_items_once_and_no_padding():
    assert metrics.coverage(np.array([[0, 1, 5], [1, -1, -1]]), 2, 10) == 0.2
    assert metrics.coverage(np.zeros((0, 2), np.int64), 2, 10) == 0.0
