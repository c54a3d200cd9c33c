import datetime

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.derived import joined_text
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.data.attributes import attribute_tokens, binned, fixed_vectors, standardised
from recsys_ray.data.catalogue import typed
from recsys_ray.data.rejected import Rejected
from recsys_ray.data.roles import auto_role, decide_roles
from recsys_ray.data.sources import DataConfig

N = 100
TABLE = pa.table(
    {
        "item_id": [str(row) for row in range(N)],
        "name": [f"Thing{row}" for row in range(N)],
        "plot": [f"A long story about {row % 9}" for row in range(N)],
        "colour": ["red" if row % 3 else "dark blue" for row in range(N)],
        "sku": [f"X{row:05d}" for row in range(N)],
        "url": [f"https://example.org/{row}" for row in range(N)],
        "shop": ["one"] * N,
        "tags": [["a", "b"] if row % 2 else ["b"] for row in range(N)],
        "adult": [row % 2 for row in range(N)],
        "size": [row % 5 for row in range(N)],
        "year": [1900 + row for row in range(N)],
        "price": [row * 0.5 for row in range(N)],
        "made": [datetime.date(2000, 1, 1) + datetime.timedelta(days=row) for row in range(N)],
        "sound": [[float(row), 1.0] for row in range(N)],
        "nothing": pa.nulls(N, pa.string()),
        "extra": [{"a": 1}] * N,
    }
)


def test_auto_roles_by_type_and_distinctness():
    roles = decide_roles(TABLE, DataConfig(), "name", {"item_id"})
    assert roles.text == ["name", "plot"]
    assert roles.categorical == ["colour", "tags", "adult", "size"]
    assert roles.numeric == ["year", "price", "made"]
    assert roles.vectors == ["sound"]
    assert roles.ignored == {
        "sku": "one-word identifiers",
        "url": "web addresses",
        "shop": "a single value",
        "nothing": "always missing",
        "extra": "no use for values of type struct<a: int64>",
    }


def test_explicit_roles_are_taken_as_they_are():
    config = DataConfig(text=("plot", "colour"), numeric=())
    roles = decide_roles(TABLE, config, "name", {"item_id"})
    assert roles.text == ["plot", "colour"]
    assert roles.numeric == []
    assert roles.categorical == ["tags", "adult", "size"]
    assert roles.ignored["name"] == "data.text does not name it"


@pytest.mark.parametrize(
    ("setting", "name", "message"),
    [
        ("text", "plott", r"data.text: got 'plott'; allowed: item_id, name, plot.*no such column"),
        ("numeric", "colour", r"data.numeric: got 'colour'.*holds string"),
        ("vectors", "tags", r"data.vectors: got 'tags'.*lists of numbers"),
    ],
)
def test_wrong_roles_are_explained(setting, name, message):
    with pytest.raises(ConfigError, match=message):
        decide_roles(TABLE, DataConfig.parse({setting: (name,)}), None, {"item_id"})


def test_typed_text():
    def kind(values):
        return typed(pa.chunked_array([pa.array(values, pa.string())])).to_pylist()

    assert kind(["1", " 2", "", None, "NA"]) == [1, 2, None, None, None]
    assert kind(["1.5", "nan", "2"]) == [1.5, None, 2.0]
    assert kind(["1995.0", ""]) == [1995, None]
    assert kind(["true", "false"]) == [True, False]
    assert kind(["02134", "10001"]) == ["02134", "10001"]
    assert kind(["1", "NA", "x"]) == ["1", "NA", "x"]
    assert kind([None, ""]) == [None, ""]


def test_text_is_joined_in_order_and_no_row_is_lost():
    table = pa.table({"a": ["x", None, "", " y "], "b": [None, None, "z", "w"], "c": [["p", "q"], [], None, ["r"]]})
    assert joined_text(table, ["a", "b", "c"]).to_pylist() == ["x\np, q", None, "z", "y\nw\nr"]
    assert joined_text(table, ["a"]).to_pylist() == ["x", None, None, "y"]
    assert joined_text(table, []).to_pylist() == [None] * 4


def test_tokens_are_ordered_by_frequency_then_name():
    table = pa.table(
        {
            "tags": [["b", "a", "b"], ["b"], None, [" ", None, "c"], []],
            "flag": [1, 0, 1, None, 1],
            "code": [7, 7, 8, None, None],
        }
    )
    tokens = attribute_tokens(table, ["tags", "flag", "code"], max_tokens=10, min_count=1)
    assert tokens.vocabulary == {"flag=1": 1, "code=7": 2, "tags=b": 3, "code=8": 4, "tags=a": 5, "tags=c": 6}
    assert tokens.column.to_pylist() == [[1, 2, 3, 5], [2, 3], [1, 4], [6], [1]]
    assert tokens.column.type == pa.list_(pa.int32())
    capped = attribute_tokens(table, ["tags", "flag", "code"], max_tokens=2, min_count=1)
    assert capped.vocabulary == {"flag=1": 1, "code=7": 2}
    assert capped.column.to_pylist() == [[1, 2], [2], [1], [], [1]]
    assert list(attribute_tokens(table, ["tags"], max_tokens=9, min_count=2).vocabulary) == ["tags=b"]
    assert attribute_tokens(table, [], 9, 1).column.to_pylist() == [[]] * 5


def test_numbers_are_standardised_and_missing_ones_are_zero():
    table = pa.table({"x": [1.0, 3.0, None, float("inf")], "same": [2, 2, 2, 2], "y": [10, 20, 30, 40]})
    column, stats = standardised(table, ["x", "same", "y"])
    assert list(stats) == ["x", "y"]
    assert (stats["x"].mean, stats["x"].std) == (2.0, 1.0)
    values = np.array(column.to_pylist())
    assert values[:, 0].tolist() == [-1.0, 1.0, 0.0, 0.0]
    assert values[:, 1].mean() == pytest.approx(0, abs=1e-6)
    assert values[:, 1].std() == pytest.approx(1)
    assert standardised(table, []) == (None, {})


def test_vectors_of_another_length_are_rejected():
    column = pa.chunked_array([pa.array([[1.0, 2.0], None, [1.0], [3.0, float("nan")], [5.0, 6.0]])])
    rejected = Rejected()
    fixed = fixed_vectors("audio", column, pa.array([10, 11, 12, 13, 14]), rejected)
    assert fixed.type == pa.list_(pa.float32(), 2)
    assert fixed.to_pylist() == [[1.0, 2.0], None, None, None, [5.0, 6.0]]
    assert [(row["source"], row["line"], row["value"]) for row in rejected.table().to_pylist()] == [
        ("vectors", 12, "audio: length 1, most have 2"),
        ("vectors", 13, "audio: length 2, most have 2"),
    ]
    with pytest.raises(DataError, match="has none"):
        fixed_vectors("audio", pa.chunked_array([pa.nulls(2, pa.list_(pa.float32()))]), pa.array([0, 1]), rejected)


def test_empty_vectors_are_missing_ones():
    kind = pa.list_(pa.float32())
    rejected = Rejected()
    column = pa.chunked_array([pa.array([[], [], [1.0, 2.0]], kind)])
    assert fixed_vectors("audio", column, pa.array([0, 1, 2]), rejected).to_pylist() == [None, None, [1.0, 2.0]]
    assert rejected.table().num_rows == 0
    assert auto_role(pa.chunked_array([pa.array([[], None], kind)])) == "always empty"


def test_user_numbers_become_ranges():
    ages = binned(pa.chunked_array([pa.array([*range(100), None])]))
    assert ages.to_pylist()[0] == ages.to_pylist()[9] == "up to 9.9"
    assert ages.to_pylist()[99] == "up to 99"
    assert ages.to_pylist()[100] is None
    assert len(set(ages.to_pylist())) == 11
    codes = pa.chunked_array([pa.array([1, 2, 3])])
    assert binned(codes) == codes
