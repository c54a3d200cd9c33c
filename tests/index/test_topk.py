import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.index.topk import top_k_columns


@given(
    st.integers(1, 5).flatmap(
        lambda rows: st.integers(0, 12).flatmap(
            lambda columns: st.lists(
                st.lists(st.sampled_from([-np.inf, 0.0, 1.0, 2.0]), min_size=columns, max_size=columns),
                min_size=rows,
                max_size=rows,
            )
        )
    ),
    st.integers(1, 15),
)
def test_equals_a_full_sort_by_falling_score_then_rising_column(rows: list[list[float]], k: int) -> None:
    scores = np.array(rows, np.float32).reshape(len(rows), -1)
    columns, values = top_k_columns(scores, k)
    for row in range(len(scores)):
        order = [c for c in np.lexsort((np.arange(scores.shape[1]), -scores[row])) if scores[row, c] > -np.inf][:k]
        assert columns[row].tolist() == order + [-1] * (k - len(order))
        assert values[row, : len(order)].tolist() == scores[row, order].tolist()
        assert np.isneginf(values[row, len(order) :]).all()
