import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.prefix import PrefixIndex, cut
from recsys_ray.index.spec import IndexConfig, choose, load_index


def unit(rows: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS, QUERIES = unit(400, 24, 0), unit(12, 24, 1)


@given(st.integers(1, 24), st.integers(1, 24))
def test_cutting_twice_is_cutting_once(first: int, second: int) -> None:
    short = min(first, second)
    assert np.allclose(cut(cut(VECTORS, max(first, second)), short), cut(VECTORS, short), atol=1e-5)


def test_what_is_cut_has_unit_length_and_nothing_stays_nothing() -> None:
    vectors = VECTORS.copy()
    vectors[3, :8] = 0
    norms = np.linalg.norm(cut(vectors, 8), axis=1)
    assert norms[3] == 0
    assert np.allclose(np.delete(norms, 3), 1, atol=1e-5)


@pytest.mark.parametrize("factory", ["exact", "SQfp16", "auto"])
def test_index_and_oracle_answer_by_the_first_numbers_alone(tmp_path, factory: str) -> None:
    choice = choose(VECTORS, QUERIES, IndexConfig(factory=factory, dim=8, k=10))
    index = choice.index
    assert isinstance(index, PrefixIndex)
    expected = cut(QUERIES, 8) @ cut(VECTORS, 8).T
    assert np.allclose(index.scores(QUERIES), expected, atol=1e-5)
    exclude = Ragged.of([np.array([row]) for row in expected.argmax(1)])
    rows, scores = index.search(QUERIES, 10, exclude)
    assert not (rows == expected.argmax(1)[:, None]).any()
    assert np.allclose(scores, np.take_along_axis(expected, rows, 1), atol=1e-5)
    assert choice.summary()["dim"] == 8
    # Whole vectors stay beside it: histories are read with them.
    index.save(tmp_path)
    loaded = load_index(tmp_path)
    assert np.array_equal(loaded.vectors, VECTORS)
    assert all(
        np.array_equal(one, other)
        for one, other in zip(loaded.search(QUERIES, 10), index.search(QUERIES, 10), strict=True)
    )


def test_all_numbers_are_the_index_itself() -> None:
    whole = ExactIndex(VECTORS).search(QUERIES, 10)[0]
    assert np.array_equal(
        choose(VECTORS, QUERIES, IndexConfig(factory="exact", dim=24)).index.search(QUERIES, 10)[0], whole
    )


def test_more_numbers_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"index.dim: got 25; allowed: at most 24"):
        choose(VECTORS, QUERIES, IndexConfig(dim=25))
