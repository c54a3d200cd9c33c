import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import DataError
from recsys_ray.core.ids import IdMap

IDS = st.lists(st.text(), unique=True, max_size=30)


@given(IDS)
def test_rows_and_ids_are_a_bijection(ids):
    mapping = IdMap(ids)
    assert mapping.ids == ids
    assert mapping.rows(ids).tolist() == list(range(len(ids)))
    assert mapping.externals(mapping.rows(ids)) == ids
    assert [mapping.external(mapping.row(external)) for external in ids] == ids
    assert len(mapping) == len(ids)


@given(IDS, st.lists(st.one_of(st.none(), st.text()), max_size=30))
def test_columns_of_ids_find_the_same_rows(ids, asked):
    mapping = IdMap(ids)
    found = mapping.rows_of_column(pa.chunked_array([pa.array(asked, pa.string())]))
    assert found.tolist() == [-1 if text is None else mapping.row(text) for text in asked]


def test_unknown_ids():
    mapping = IdMap(["a", "b"])
    assert mapping.row("c") == -1
    assert "c" not in mapping
    assert "a" in mapping
    assert mapping.rows(["c", "b"]).tolist() == [-1, 1]


def test_repeated_ids_are_refused():
    with pytest.raises(DataError, match="1 of 3 come again"):
        IdMap(["a", "b", "a"])
