from typing import Any

import pyarrow as pa
import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.filters import allowed_items

ITEMS = pa.table(
    {
        "item_id": ["a", "b", "c", "d"],
        "year": pa.array([1990, 1995, None, 2001], pa.int64()),
        "price": [1.5, 2.0, 3.0, None],
        "genres": [["drama"], ["drama", "action"], [], None],
        "director": ["Woo", "Lee", None, "Woo"],
        "new": [True, False, None, True],
        "_text": ["x"] * 4,
    }
)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, "abcd"),
        ({"director": "Woo"}, "ad"),
        ({"director": {"in": ["Lee", "Nobody"]}}, "b"),
        ({"director": {"in": []}}, ""),
        ({"year": {"min": 1995}}, "bd"),
        ({"year": {"min": 1990, "max": 1995}}, "ab"),
        ({"year": 2001}, "d"),
        ({"price": {"max": 2}}, "ab"),
        ({"genres": "drama"}, "ab"),
        ({"genres": {"in": ["action", "comedy"]}}, "b"),
        ({"new": True}, "ad"),
        ({"genres": "drama", "year": {"min": 1991}}, "b"),
        ({"item_id": {"in": ["c", "a"]}}, "ac"),
    ],
)
def test_conditions(filters: dict[str, Any], expected: str) -> None:
    mask = allowed_items(ITEMS, filters)
    assert "".join(ITEMS.filter(pa.array(mask)).column("item_id").to_pylist()) == expected


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"colour": "red"}, "filters.colour.*item_id, year, price"),
        ({"_text": "x"}, "no such field"),
        ({"year": "1990"}, "filters.year: got '1990'; allowed: values of type int64"),
        ({"year": True}, "values of type int64"),
        ({"director": 3}, "values of type string"),
        ({"director": ["Woo"]}, '"in"'),
        ({"director": {"in": "Woo"}}, "a list of values"),
        ({"director": {"like": "W%"}}, "in, min, max"),
        ({"director": {}}, "in, min, max"),
        ({"year": {"min": 10**30}}, "values of type int64"),
        ({"director": None}, "values of type string"),
    ],
)
def test_mistakes_name_the_field_and_what_is_allowed(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        allowed_items(ITEMS, filters)
