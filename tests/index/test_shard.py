"""Shards of an index: every row in exactly one of them, in its order, whatever kind of index was saved."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import build
from recsys_ray.index.live import merged
from recsys_ray.index.prefix import PrefixIndex, cut
from recsys_ray.index.shard import Shard, load_shard
from recsys_ray.index.spec import Index


def shards(count: int) -> list[Shard]:
    return [Shard(number, count) for number in range(count)]


@given(num_rows=st.integers(0, 40), new=st.integers(0, 20), count=st.integers(1, 9), seed=st.integers(0, 9))
def test_each_row_is_in_one_shard_and_rows_keep_their_order(num_rows: int, new: int, count: int, seed: int) -> None:
    rows, mask = np.arange(num_rows + new), np.random.default_rng(seed).random(num_rows + new) < 0.5
    held = []
    for shard in shards(count):
        places = shard.places(rows, num_rows)
        mine = rows[places >= 0]
        np.testing.assert_array_equal(places[places >= 0], np.arange(len(mine)))
        np.testing.assert_array_equal(shard.rows(np.arange(-1, len(mine)), num_rows), [-1, *mine])
        np.testing.assert_array_equal(shard.mask(mask, num_rows), mask[mine])
        held += mine.tolist()
    assert sorted(held) == rows.tolist()


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, 8)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("kind", ["exact", "prefix", "IVF4,Flat"])
@pytest.mark.parametrize("count", [1, 3, 60])
def test_loaded_shards_together_search_exactly(kind: str, count: int, tmp_path: Path) -> None:
    vectors, queries = unit(50, 0), unit(4, 1)
    vectors[::3] = vectors[0]  # of equal rows in several shards the first come back
    exact: Index = ExactIndex(vectors)
    saved = exact
    if kind == "prefix":
        exact = saved = PrefixIndex(vectors, ExactIndex(cut(vectors, 5)))
    elif kind != "exact":
        pytest.importorskip("faiss")
        saved = build(vectors, kind, "nprobe=1")
    saved.save(tmp_path)
    lists = []
    for shard in shards(count):
        part = load_shard(tmp_path, shard)
        start, stop = shard.bounds(len(vectors))
        np.testing.assert_array_equal(part.vectors, vectors[start:stop])
        assert not part.vectors.flags.owndata  # mapped: what lies beside it is not read
        places, scores = part.search(queries, 7)
        lists.append((shard.rows(places, len(vectors)), scores))
    for mine, expected in zip(merged(lists, 7), exact.search(queries, 7), strict=True):
        np.testing.assert_array_equal(mine, expected)
