"""The live index against the oracle: an index built anew of what holds."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import build
from recsys_ray.index.live import LiveIndex
from recsys_ray.index.prefix import PrefixIndex, cut
from recsys_ray.index.subset import Allowed, Subset

DIM, BASE, ROWS = 4, 12, 30
# Whole numbers have exact products, and many equal ones: order is tested too.
vectors = st.lists(st.integers(-2, 2), min_size=DIM, max_size=DIM)
puts = st.dictionaries(st.integers(0, ROWS - 1), vectors, max_size=6)
batches = st.lists(st.tuples(puts, st.sets(st.integers(0, ROWS - 1), max_size=4), st.booleans()), max_size=6)
row_lists = st.lists(st.lists(st.integers(0, ROWS + 3), max_size=6), min_size=2, max_size=2)


@dataclass
class Oracle:
    """Every row that holds and its vector."""

    vectors: dict[int, list[float]] = field(default_factory=dict)

    def search(self, query: np.ndarray, k: int, excluded: set[int], allowed: np.ndarray | None) -> list[tuple]:
        found = [
            (row, float(np.float32(query @ np.array(vector, np.float32))))
            for row, vector in self.vectors.items()
            if row not in excluded and (allowed is None or (row < len(allowed) and allowed[row]))
        ]
        found.sort(key=lambda one: (-one[1], one[0]))
        return found[:k] + [(-1, -np.inf)] * (k - len(found))


def start(rng: np.random.Generator) -> tuple[LiveIndex, Oracle]:
    base = rng.integers(-2, 3, (BASE, DIM)).astype(np.float32)
    return LiveIndex.over(ExactIndex(base)), Oracle(dict(enumerate(base.tolist())))


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 5),
    batches=batches,
    k=st.integers(1, ROWS),
    excluded=row_lists,
    share=st.sampled_from([None, 0.5, 0.1]),
)
def test_any_changes_give_the_results_of_an_index_built_anew(seed, batches, k, excluded, share) -> None:
    rng = np.random.default_rng(seed)
    index, oracle = start(rng)
    for put, removed, compact in batches:
        removed = removed - put.keys()
        rows = np.array(sorted(put), np.int64)
        values = np.array([put[row] for row in rows.tolist()], np.float32).reshape(-1, DIM)
        index = index.put(rows, values, np.array(sorted(removed), np.int64))
        oracle.vectors |= put
        for row in removed:
            oracle.vectors.pop(row, None)
        index = index.compacted() if compact else index
    queries = rng.integers(-2, 3, (2, DIM)).astype(np.float32)
    mask = None if share is None else rng.random(ROWS - 5) < share
    allowed = None if mask is None else Allowed((Subset(mask),), np.array([0, -1]))
    rows, scores = index.search(queries, k, Ragged.of(excluded), allowed)
    for query in range(2):
        expected = oracle.search(queries[query], k, set(excluded[query]), mask if query == 0 else None)
        assert list(zip(rows[query].tolist(), scores[query].tolist(), strict=True)) == expected
    held = sorted(oracle.vectors)
    wanted = np.arange(ROWS)
    expected_vectors = np.array([oracle.vectors.get(row, [0] * DIM) for row in wanted.tolist()])
    np.testing.assert_array_equal(index.at(wanted.reshape(2, -1)).reshape(-1, DIM), expected_vectors)
    np.testing.assert_array_equal(np.flatnonzero(np.isfinite(index.scores(queries)[0])), held)


def unit(count: int, seed: int, dim: int = 16) -> np.ndarray:
    drawn = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["IVF4,Flat", "prefix"])
def test_other_bases_score_and_compact_alike(kind: str) -> None:
    base = unit(200, 0)
    length = 8 if kind == "prefix" else 16
    if kind == "prefix":
        index = LiveIndex.over(PrefixIndex(base, ExactIndex(cut(base, length))))
    else:
        pytest.importorskip("faiss")
        index = LiveIndex.over(build(base, kind, "nprobe=4"))
    queries, new = unit(5, 1), unit(4, 2)
    changed = index.put(np.array([3, 200, 201, 205]), new, np.array([7, 8, 202]))
    everything = np.zeros((206, 16), np.float32)
    everything[:200] = base
    everything[[3, 200, 201, 205]] = new
    everything[[7, 8]] = 0
    for one in (changed, changed.compacted()):
        assert one.factory == index.factory
        rows, scores = one.search(queries, 10)
        expected = ExactIndex(cut(everything, length)).search(cut(queries, length), 10)
        np.testing.assert_array_equal(rows, expected[0])
        np.testing.assert_allclose(scores, expected[1], rtol=1e-5)
    assert len(changed.compacted().rows) == 0
    old_rows = index.search(queries, 10)[0]
    assert (old_rows < 200).all()  # the value that searches are under way in has not changed
