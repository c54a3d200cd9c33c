import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged

ROWS = st.lists(st.lists(st.integers(-5, 5), max_size=6), max_size=8)


def as_lists(ragged: Ragged) -> list[list[int]]:
    return [ragged[row].tolist() for row in range(len(ragged))]


@given(ROWS)
def test_rows_come_back(rows):
    ragged = Ragged.of(rows)
    assert as_lists(ragged) == rows
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged.row_of_value.tolist() == [place for place, row in enumerate(rows) for _ in row]
    assert ragged.values.dtype == ragged.offsets.dtype == np.int64


@given(ROWS, st.data())
def test_take(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10) if rows else st.just([]))
    assert as_lists(Ragged.of(rows).take(np.array(chosen, np.int64))) == [rows[place] for place in chosen]


@given(ROWS)
def test_where(rows):
    ragged = Ragged.of(rows)
    assert as_lists(ragged.where(ragged.values > 0)) == [[value for value in row if value > 0] for row in rows]


@given(ROWS, st.integers(0, 8))
def test_last(rows, count):
    assert as_lists(Ragged.of(rows).last(count)) == [row[len(row) - min(count, len(row)) :] for row in rows]


@given(ROWS, st.integers(0, 8))
def test_padded_is_right_aligned(rows, width):
    expected = [[-1] * (width - len(row)) + row[max(len(row) - width, 0) :] for row in rows]
    padded = Ragged.of(rows).padded(width)
    assert padded.shape == (len(rows), width)
    assert padded.tolist() == expected


def test_empty_rows():
    assert as_lists(Ragged.empty(3)) == [[], [], []]
    assert len(Ragged.of([])) == 0
