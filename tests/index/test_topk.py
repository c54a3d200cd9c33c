import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.arrays import FloatArray
from recsys_ray.index.topk import top_k_columns

LEVELS = np.array([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-40, 1.0, 2.0, np.inf], np.float32)


def full_sort(scores: FloatArray, k: int) -> tuple[list[list[int]], list[list[float]]]:
    """By falling score, then rising column, without minus infinity."""
    orders = [
        [c for c in np.lexsort((np.arange(scores.shape[1]), -row)) if row[c] > -np.inf][:k]
        for row in scores.astype(np.float64)
    ]
    return orders, [row[order].tolist() for row, order in zip(scores, orders, strict=True)]


def assert_equal_to_a_full_sort(scores: FloatArray, k: int) -> None:
    columns, values = top_k_columns(scores, k)
    assert columns.shape == values.shape == (len(scores), k)
    for row, (order, best) in enumerate(zip(*full_sort(scores, k), strict=True)):
        assert columns[row].tolist() == order + [-1] * (k - len(order))
        assert values[row].tolist() == best + [-np.inf] * (k - len(order))


@given(
    st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 400), st.integers(1, 15), st.integers(1, len(LEVELS))
)
def test_equals_a_full_sort_by_falling_score_then_rising_column(
    seed: int, rows: int, columns: int, k: int, levels: int
) -> None:
    """Few levels make most scores equal, many columns and few levels make candidates a small part of a row."""
    rng = np.random.default_rng(seed)
    assert_equal_to_a_full_sort(rng.choice(rng.permutation(LEVELS)[:levels], (rows, columns)), k)


@pytest.mark.parametrize("k", [1, 10, 200])
def test_distinct_scores_and_sparse_rows_of_several_blocks(k: int) -> None:
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((700, 3000)).astype(np.float32)
    assert_equal_to_a_full_sort(scores[:5], k)
    scores[rng.random(scores.shape) < rng.random((700, 1))] = -np.inf
    columns, values = top_k_columns(scores, k)
    expected = -np.sort(-scores, axis=1)[:, :k]
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(np.where(columns < 0, -np.inf, np.take_along_axis(scores, columns, 1)), expected)
