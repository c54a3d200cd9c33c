"""A channel in shards against the same channel whole: over changes, filters and exclusions, row for row."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import FaissIndex
from recsys_ray.index.shard import Shard
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import load_release
from recsys_ray.retrieval.sharded import ShardChannel, load_shard_release, merge_shards
from recsys_ray.retrieval.text_backends import TextEncoderConfig

DIM, BASE, ROWS = 3, 12, 24
# Whole numbers have exact products, and many equal ones: order is tested too.
vector = st.lists(st.integers(-1, 1), min_size=DIM, max_size=DIM)
puts = st.dictionaries(st.integers(0, ROWS - 1), vector, max_size=6)
batches = st.lists(st.tuples(puts, st.sets(st.integers(0, ROWS - 1), max_size=5), st.booleans()), max_size=4)
row_lists = st.lists(st.lists(st.integers(0, ROWS - 1), max_size=8), min_size=3, max_size=3)


def whole_and_shards(seed: int, count: int) -> tuple[NearestChannel, list[ShardChannel]]:
    vectors = np.random.default_rng(seed).integers(-1, 2, (BASE, DIM)).astype(np.float32)
    whole = NearestChannel("nearest", NearestConfig(), "space", ExactIndex(vectors), {})
    parts = []
    for shard in (Shard(number, count) for number in range(count)):
        start, stop = shard.bounds(BASE)
        parts.append(ShardChannel(replace(whole, index=ExactIndex(vectors[start:stop])), shard, BASE))
    return whole, parts


def assert_same(whole: NearestChannel, parts: list[ShardChannel], queries: Queries, k: int) -> Candidates:
    merged, expected = merge_shards([part.retrieve(queries, k) for part in parts], k), whole.retrieve(queries, k)
    np.testing.assert_array_equal(merged.rows, expected.rows)
    np.testing.assert_array_equal(merged.scores, expected.scores)
    return expected


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 5),
    count=st.integers(1, 15),
    batches=batches,
    k=st.integers(1, ROWS + 2),
    excluded=row_lists,
    share=st.sampled_from([None, 1.0, 0.5, 0.05, 0.0]),
)
def test_shards_give_the_lists_of_the_whole_channel_through_any_changes(
    seed: int,
    count: int,
    batches: list[tuple[dict[int, list[int]], set[int], bool]],
    k: int,
    excluded: list[list[int]],
    share: float | None,
) -> None:
    rng = np.random.default_rng(seed)
    whole, parts = whole_and_shards(seed, count)
    for put, removed, compact in batches:
        rows, gone = np.array(sorted(put), np.int64), np.array(sorted(removed - put.keys()), np.int64)
        vectors = np.array([put[row] for row in rows.tolist()], np.float32).reshape(-1, DIM)
        whole = whole.put(rows, vectors, gone)
        parts = [part.put(rows, vectors, gone) for part in parts]
        if compact:  # replicas compact when they like
            parts[0] = parts[0].compacted()
    asked = rng.integers(-1, 2, (3, DIM)).astype(np.float32)
    num_rows = ROWS if batches else BASE
    mask = None if share is None else rng.random(num_rows) < share
    queries = Queries(
        history=Ragged.of(excluded),
        exclude=Ragged.of([[row for row in rows if row < num_rows] for rows in excluded]),
        texts=(None,) * 3,
        vectors={"space": asked},
        allowed=None if mask is None else Allowed((Subset(mask),), np.array([0, -1, 0])),
    )
    assert_same(whole, parts, queries, k)


def test_a_shard_scores_its_own_rows_alone() -> None:
    whole, parts = whole_and_shards(0, 3)
    queries = replace(Queries.of_histories(Ragged.of([[1, 5]])), vectors={"space": np.ones((1, DIM), np.float32)})
    scores = np.stack([part.scores(queries)[0] for part in parts])
    assert (np.isfinite(scores).sum(0) == np.isfinite(whole.scores(queries)[0])).all()
    np.testing.assert_array_equal(scores.max(0), whole.scores(queries)[0])
    new = parts[1].put(np.array([BASE + 1]), np.full((1, DIM), 9, np.float32), np.array([4]))
    assert new.scores(queries)[0, BASE + 1] == 9 * DIM
    assert np.isneginf(new.scores(queries)[0, 4])


def test_questions_without_vectors_get_nothing() -> None:
    whole, parts = whole_and_shards(0, 2)
    found = assert_same(whole, parts, Queries.of_histories(Ragged.of([[1], []])), 5)
    assert (found.rows == -1).all()


def test_shards_of_an_approximate_index_search_exactly_and_nobody_loads_it(published: Path) -> None:
    pytest.importorskip("faiss")
    exact = load_release(published, unindexed=["nearest"])
    assert isinstance(load_release(published).retriever.channels["nearest"].index, FaissIndex)
    assert isinstance(exact.retriever.channels["nearest"].index, ExactIndex)
    parts = [load_shard_release(published, "nearest", Shard(number, 3), TextEncoderConfig()) for number in range(3)]
    queries = exact.retriever.encode(exact.question(["i3", "i40"]).queries)
    assert_same(
        exact.retriever.channels["nearest"], [part.retriever.channels["nearest"] for part in parts], queries, 400
    )
    assert not any(part.retriever.channels["nearest"].base.index.vectors.flags.owndata for part in parts)
