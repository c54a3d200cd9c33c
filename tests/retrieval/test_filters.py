import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.filters import (
    AllOf,
    AnyOf,
    CompiledFilters,
    Equals,
    Filter,
    In,
    Not,
    Range,
    allowed_items,
    canonical,
)

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "year": pa.array([1990, 1995, None, 2001], pa.int64()),
        "price": [1.5, 2.0, float("nan"), None],
        "genres": [["drama"], ["drama", "action"], [], None],
        "director": pa.array(["Woo", "Lee", None, "Woo"]).dictionary_encode(),
        "new": [True, False, None, True],
        "day": pa.array([dt.date(2024, 1, 1), dt.date(2024, 1, 2), None, dt.date(2024, 2, 1)]),
        "at": pa.array([0, 86_400_000_000 - 1, 86_400_000_000, None], pa.timestamp("us", "UTC")),
        "small": pa.array([0.1, 0.2, None, 0.3], pa.float32()),
        "vector": pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32(), 2)),
        "_text": ["x"] * 4,
    }
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Equals("director", "Woo"), "ad"),
        (Equals("director", "Nobody"), ""),
        (In("director", ("Lee", "Nobody")), "b"),
        (Range("year", min=1995), "bd"),
        (Range("year", 1990, 1995), "ab"),
        (Equals("year", 2001), "d"),
        (Range("price", max=2), "ab"),
        (Equals("small", 0.1), "a"),
        (Equals("genres", "drama"), "ab"),
        (In("genres", ("action", "comedy", "drama")), "ab"),
        (Equals("new", True), "ad"),
        (AllOf((Equals("genres", "drama"), Range("year", min=1991))), "b"),
        (AnyOf((Equals("director", "Lee"), Equals("year", 2001))), "bd"),
        (Not(Equals("director", "Woo")), "bc"),
        (In("item_id", ("c", "a")), "ac"),
        (Range("item_id", "b", "c"), "bc"),
        (Range("day", max="2024-01-02"), "ab"),
        (Equals("day", "2024-02-01"), "d"),
        (Range("at", max="1970-01-01"), "ab"),
        (Equals("at", "1970-01-01"), "ab"),
        (Range("at", min="1970-01-01T23:59:59.999999+00:00"), "bc"),
        (Range("at", min="1970-01-02T01:00:00+01:00"), "c"),
    ],
)
def test_conditions(wanted: Filter, expected: str) -> None:
    mask = allowed_items(ITEMS, wanted)
    assert "".join(ITEMS.filter(pa.array(mask)).column("item_id").to_pylist()) == expected


def nested(depth: int) -> Filter:
    wanted: Filter = Equals("new", True)
    for _ in range(depth - 1):
        wanted = Not(wanted)
    return wanted


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (Equals("colour", "red"), r"filters\.colour.*item_id, year, price"),
        (Equals("_text", "x"), "no such field"),
        (Equals("year", "1990"), r"filters\.year: got '1990'; allowed: values of type int64"),
        (Equals("year", True), "values of type int64"),
        (Equals("year", 1990.0), "values of type int64"),
        (Equals("director", 3), "values of type string"),
        (Equals("new", 1), "values of type bool"),
        (Range("new", min=False), "true or false"),
        (Equals("year", 10**30), "values of type int64"),
        (Equals("price", float("inf")), "values of type double"),
        (In("director", ()), r"filters\.director: got '0 values'; allowed: 1 to 10000"),
        (In("year", (1990, "x")), "values of type int64"),
        (Range("year"), "min, max or both"),
        (Range("year", 2000, 1999), r"filters\.year: got 'min 2000 above max 1999'"),
        (Range("day", "2024-02-01", "2024-01-01"), "above max"),
        (Equals("day", "soon"), r"filters\.day: got 'soon'; allowed: dates or times in ISO 8601"),
        (Equals("at", 0), "ISO 8601"),
        (Equals("vector", 1.0), "fields of text, numbers"),
        (AllOf(()), "all of nothing"),
        (nested(9), "at most 8"),
        (AnyOf((Equals("year", 1),) * 128), "at most 128"),
    ],
)
def test_mistakes_name_the_field_and_what_is_allowed(wanted: Filter, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allowed_items(ITEMS, wanted)


def test_the_bounds_themselves_are_allowed() -> None:
    assert allowed_items(ITEMS, nested(8)).any()
    assert allowed_items(ITEMS, AnyOf((Equals("year", 1990),) * 127)).sum() == 1


numbers = st.integers(-5, 5)
leaves: st.SearchStrategy[Filter] = st.one_of(
    st.builds(Equals, st.sampled_from(["n", "l"]), numbers),
    st.builds(In, st.sampled_from(["n", "l"]), st.lists(numbers, min_size=1, max_size=4).map(tuple)),
    st.tuples(st.sampled_from(["n", "l"]), numbers, numbers).map(lambda t: Range(t[0], min(t[1:]), max(t[1:]))),
)
filters = st.recursive(
    leaves,
    lambda part: st.one_of(
        st.builds(Not, part),
        st.builds(AllOf, st.lists(part, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(part, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


def fits(item: dict[str, Any], wanted: Filter) -> bool:
    """The language by its definition, one item at a time."""
    if isinstance(wanted, Not):
        return not fits(item, wanted.of)
    if isinstance(wanted, AllOf):
        return all(fits(item, part) for part in wanted.of)
    if isinstance(wanted, AnyOf):
        return any(fits(item, part) for part in wanted.of)
    value = item[wanted.field]
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    if isinstance(wanted, Equals):
        return wanted.value in values
    if isinstance(wanted, In):
        return any(one in wanted.values for one in values)
    return any(wanted.min <= one <= wanted.max for one in values)


@given(
    st.lists(st.tuples(st.none() | numbers, st.none() | st.lists(st.none() | numbers, max_size=3)), max_size=60),
    filters,
)
def test_compiled_is_what_the_language_says(rows: list[tuple[Any, Any]], wanted: Filter) -> None:
    schema = pa.schema([("n", pa.int64()), ("l", pa.list_(pa.int64()))])
    items = pa.Table.from_pylist([dict(zip("nl", row, strict=True)) for row in rows], schema)
    assert allowed_items(items, wanted).tolist() == [fits(item, wanted) for item in items.to_pylist()]


def test_order_and_repetition_of_parts_do_not_count_but_types_do() -> None:
    one, two = Equals("year", 1990), Range("price", 1, 2)
    assert canonical(AllOf((one, two))) == canonical(AllOf((two, one, two)))
    assert canonical(In("year", (2, 1))) == canonical(In("year", (1, 2, 1)))
    assert len({canonical(Equals("f", value)) for value in (1, True, 1.0, "1")}) == 4


def test_a_compiled_filter_is_kept_until_memory_is_short() -> None:
    compiled = CompiledFilters(ITEMS, cache_bytes=40)
    first = compiled.compile(Equals("year", 1990))
    assert compiled.compile(Equals("year", 1990)) is first
    for year in (1995, 2001, 2002, 2003):
        compiled.compile(Equals("year", year))
    assert compiled.compile(Equals("year", 1990)) is not first


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5])
def test_wide_and_tight_values_give_the_same_by_either_way(share: float) -> None:
    values = (np.random.default_rng(0).random(5000) < share).astype(np.int64)
    table = pa.table({"n": values, "l": [[int(value)] for value in values]})
    for wanted in (0, 1, 2):
        assert (allowed_items(table, Equals("n", wanted)) == (values == wanted)).all()
        assert (allowed_items(table, Equals("l", wanted)) == (values == wanted)).all()
