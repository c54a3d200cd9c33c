from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core import validate
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.data.clean import clean_events
from recsys_ray.data.event_log import read_events
from recsys_ray.data.rejected import Rejected
from recsys_ray.data.sources import DataConfig
from recsys_ray.data.split import TEST, TRAIN, VALIDATION

LOOSE = DataConfig(max_rejected_fraction=1.0)


def parsed(path, rows, names=("user_id", "item_id", "timestamp", "kind")):
    columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    pq.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), path)
    return read_events("data.events", str(path), LOOSE)


def cleaned(path, rows, catalogue=None, config=LOOSE):
    rejected = Rejected()
    return clean_events({TRAIN: parsed(path, rows)}, catalogue, config, rejected), rejected


def as_rows(clean):
    events = clean.events
    return [
        (clean.user_ids[user], clean.item_ids[item], int(time) // 1_000_000, kind)
        for user, item, time, kind in zip(
            events.users, events.items, events.timestamps, clean.kinds.to_pylist(), strict=True
        )
    ]


ROW = st.tuples(
    st.sampled_from(["u1", "u2", "u3", "", None]),
    st.sampled_from(["a", "b", "c", "x", None]),
    st.integers(0, 2),
    st.sampled_from(["view", "buy"]),
)


@given(rows=st.lists(ROW, min_size=1, max_size=25), user_core=st.integers(0, 3), item_core=st.integers(0, 3))
def test_against_a_plain_loop(tmp_path_factory, rows, user_core, item_core):
    catalogue = ["c", "b", "a", "never"]
    config = DataConfig(max_rejected_fraction=1.0, min_user_events=user_core, min_item_events=item_core)
    seen, kept = set(), []
    for row in rows:
        if row[0] and row[1] in catalogue and row not in seen:
            seen.add(row)
            kept.append(row)
    while True:
        inside = [
            row
            for row in kept
            if sum(other[0] == row[0] for other in kept) >= user_core
            and sum(other[1] == row[1] for other in kept) >= item_core
        ]
        if len(inside) == len(kept):
            break
        kept = inside
    order = list(dict.fromkeys(row[0] for row in rows))
    expected = sorted(kept, key=lambda row: (order.index(row[0]), row[2]))
    clean, rejected = cleaned(tmp_path_factory.mktemp("clean") / "e.parquet", rows, catalogue, config)
    assert as_rows(clean) == expected
    assert len(rows) == len(expected) + rejected.table().num_rows
    lines = rejected.table().column("line").to_pylist()
    assert len(set(lines)) == len(lines)
    used = {row[1] for row in expected}
    assert clean.item_ids == [item for item in catalogue if not item_core or item in used]


SHOWN = st.tuples(
    st.sampled_from(["u1", "u2", "u3", None]),
    st.sampled_from(["a", "b", "c", "x"]),
    st.integers(0, 3),
    st.sampled_from(["view", "buy", "shown", "teased"]),
)


@given(rows=st.lists(SHOWN, min_size=1, max_size=25), core=st.integers(0, 3), known=st.booleans())
def test_exposures_change_nothing_but_themselves(tmp_path_factory, rows, core, known):
    """The events are those of the log without exposures; kept are the exposures of their users and items."""
    folder, catalogue = tmp_path_factory.mktemp("clean"), ["c", "b", "a", "never"] if known else None
    rows = [*rows, ("u1", "a", 0, "shown"), ("u1", "a", 5, "teased"), ("u4", "b", 1, "buy")]
    config = override(LOOSE, {"min_user_events": core, "min_item_events": core})
    naming = override(config, {"exposures": ["shown", "teased"]})
    events = [row for row in rows if row[3] not in naming.exposures]
    clean, rejected = cleaned(folder / "e.parquet", rows, catalogue, naming)
    alone, _ = cleaned(folder / "alone.parquet", events, catalogue, config)
    assert sorted(as_rows(clean)) == sorted(as_rows(alone))
    assert sorted(clean.item_ids) == sorted(alone.item_ids)
    assert sorted(clean.user_ids) == sorted(alone.user_ids)
    users, items = {row[0] for row in as_rows(clean)}, {row[1] for row in as_rows(clean)}
    expected = {row for row in rows if row[3] in naming.exposures and row[0] in users and row[1] in items}
    assert sorted(as_rows(replace(clean, events=clean.exposures, kinds=clean.exposure_kinds))) == sorted(expected)
    assert len(rows) == len(clean.events) + len(clean.exposures) + rejected.table().num_rows


def test_exposures_of_held_out_files_are_not_kept(tmp_path):
    rows = [("u", "a", 1, "buy"), ("u", "b", 2, "buy"), ("u", "b", 3, "shown")]
    parts = {
        part: parsed(tmp_path / f"{part}.parquet", [(*row[:2], row[2] + 10 * part, row[3]) for row in rows])
        for part in (TRAIN, VALIDATION, TEST)
    }
    rejected = Rejected()
    clean = clean_events(parts, ["a", "b"], DataConfig(exposures=("shown",), max_rejected_fraction=0.0), rejected)
    assert clean.exposures.timestamps.tolist() == [3_000_000]
    assert len(clean.events) == 6
    assert {row["source"] for row in rejected.table().to_pylist()} == {"validation_events", "test_events"}


def test_an_exposure_that_no_event_is_of_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.exposures: got 'shwon'; allowed: buy, shown"):
        cleaned(
            tmp_path / "e.parquet",
            [("u", "a", 1, "buy"), ("u", "a", 1, "shown")],
            config=DataConfig(exposures=("shown", "shwon")),
        )


def test_reasons_and_lines(tmp_path):
    rows = [
        ("u", "a", 1, "view"),
        (None, "a", 1, "view"),
        ("u", " ", 1, "view"),
        ("u", "zz", 1, "view"),
        ("u", "a", 1, "view"),
        ("u", "a", 1, "buy"),
        ("u", "a", 2, "view"),
    ]
    clean, rejected = cleaned(tmp_path / "e.parquet", rows, ["a"])
    assert len(clean.events) == 3
    assert [(row["line"], row["reason"], row["value"]) for row in rejected.table().to_pylist()] == [
        (1, validate.MISSING_USER, "a"),
        (2, validate.MISSING_ITEM, "u"),
        (3, validate.UNKNOWN_ITEM, "zz"),
        (4, validate.DUPLICATE_EVENT, "a"),
    ]
    assert rejected.counts()["events"] == {
        validate.MISSING_USER: 1,
        validate.MISSING_ITEM: 1,
        validate.UNKNOWN_ITEM: 1,
        validate.DUPLICATE_EVENT: 1,
    }


def test_too_many_bad_rows_stop_with_counts_and_examples(tmp_path):
    rows = [("u", "a", 1, "view"), ("u", None, 2, "view"), ("u2", None, 3, "view"), (None, "a", 4, "view")]
    table = parsed(tmp_path / "e.parquet", rows)
    with pytest.raises(DataError) as caught:
        clean_events({TRAIN: table}, None, DataConfig(max_rejected_fraction=0.5), Rejected())
    text = str(caught.value)
    assert "events: 3 of 4 rows are bad (75.0%), more than data.max_rejected_fraction=0.5 allows" in text
    assert "2 times missing item_id, e.g. row 1: 'u'; row 2: 'u2'" in text
    assert "1 times missing user_id, e.g. row 3: 'a'" in text


def test_what_the_core_leaves_out_is_not_bad(tmp_path):
    config = DataConfig(max_rejected_fraction=0.0, min_user_events=2)
    rows = [("u", "a", 1, "view"), ("u", "b", 2, "view"), ("lonely", "a", 1, "view")]
    clean, rejected = cleaned(tmp_path / "e.parquet", rows, None, config)
    assert clean.user_ids == ["u"]
    assert rejected.counts() == {"events": {validate.OUTSIDE_CORE: 1}}


def test_without_timestamps_the_order_of_the_input_counts_and_repeats_are_events(tmp_path):
    rows = [("u", "b"), ("v", "a"), ("u", "a"), ("u", "b")]
    table = parsed(tmp_path / "e.parquet", rows, ("user_id", "item_id"))
    clean = clean_events({TRAIN: table}, None, LOOSE, Rejected())
    assert not clean.timed
    assert clean.item_ids == ["b", "a"]
    assert clean.events.histories[0].tolist() == [0, 1, 0]


def test_parts_keep_their_origin_and_share_ids(tmp_path):
    parts = {
        TRAIN: parsed(tmp_path / "a.parquet", [("u", "a"), ("v", "b")], ("user_id", "item_id")),
        VALIDATION: parsed(tmp_path / "b.parquet", [("u", "b"), (None, "b")], ("user_id", "item_id")),
        TEST: parsed(tmp_path / "c.parquet", [("v", "c"), ("u", "c")], ("user_id", "item_id")),
    }
    rejected = Rejected()
    clean = clean_events(parts, None, LOOSE, rejected)
    assert clean.parts.tolist() == [TRAIN, VALIDATION, TEST, TRAIN, TEST]
    assert np.array(clean.item_ids)[clean.events.items].tolist() == ["a", "b", "c", "b", "c"]
    assert rejected.table().select(["source", "line"]).to_pylist() == [{"source": "validation_events", "line": 1}]
    assert rejected.rows_in == {"events": 2, "validation_events": 2, "test_events": 2}


def test_timestamps_in_one_part_only_are_refused(tmp_path):
    parts = {
        TRAIN: parsed(tmp_path / "a.parquet", [("u", "a", 1)], ("user_id", "item_id", "timestamp")),
        TEST: parsed(tmp_path / "b.parquet", [("u", "b")], ("user_id", "item_id")),
    }
    with pytest.raises(DataError, match=r"test_events: no timestamp column.*all or none"):
        clean_events(parts, None, LOOSE, Rejected())
