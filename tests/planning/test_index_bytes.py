"""Bytes of an index, against the files of indexes really built."""

import numpy as np
import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import VECTORS_FILE
from recsys_ray.index.faiss_index import FAISS_FILE, build
from recsys_ray.index.spec import candidates
from recsys_ray.planning.index_bytes import formula, index_bytes, vectors_bytes

ITEMS, DIM = 4000, 32


@pytest.fixture(scope="module")
def vectors():
    drawn = np.random.default_rng(0).standard_normal((ITEMS, DIM)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.mark.parametrize("factory", [name for name, _ in candidates(ITEMS, DIM, k=10)])
def test_files_really_built_are_as_large_as_planned(factory, vectors, tmp_path):
    build(vectors, factory).save(tmp_path)
    assert (tmp_path / FAISS_FILE).stat().st_size == pytest.approx(index_bytes(factory, ITEMS, DIM), rel=0.02)
    assert (tmp_path / VECTORS_FILE).stat().st_size == pytest.approx(vectors_bytes(ITEMS, DIM), rel=0.01)


def test_an_exact_index_is_its_vectors():
    assert index_bytes("exact", 10**9, 128) == 0


def test_every_candidate_says_how_it_is_computed():
    assert all(formula(name) for name in ["exact", *(name for name, _ in candidates(10**6, 64, k=10))])


def test_other_factories_are_refused():
    with pytest.raises(ConfigError, match=r"index.factory: got 'LSH'"):
        index_bytes("LSH", 10, 4)
