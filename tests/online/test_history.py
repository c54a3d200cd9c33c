from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.online.history import read_histories, write_histories
from recsys_ray.online.seen import Seen

ITEMS = IdMap(["a", "b", "c"])


def test_what_was_written_is_found_by_external_ids(tmp_path: Path) -> None:
    path = tmp_path / "histories.parquet"
    histories = Ragged.of([[2, 0], [], [1]])
    write_histories(path, ["u", "v", "w"], histories, ITEMS, np.array([[3, 0], [0, 0], [1, 2]]))
    store = read_histories(path, ITEMS)
    assert [store.get(user) for user in "uvwx"] == [["c", "a"], [], ["b"], []]
    assert [store.tokens(user) for user in "uvwx"] == [[3], [], [1, 2], []]
    assert "u" in store
    assert "x" not in store
    events = store.events.take(np.array([2, -1, 0]))
    assert [events.items[row].tolist() for row in range(3)] == [[1], [], [2, 0]]


def test_ids_hold_where_the_catalogue_has_another_order(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.parquet", ["u"], Ragged.of([[2, 0, 2]]), ITEMS)
    other = IdMap(["x", "c", "a", "b"])
    store = read_histories(tmp_path / "h.parquet", other)
    assert store.get("u") == ["c", "a", "c"]
    assert store.of("u").rows.tolist() == [1, 2, 1]
    with pytest.raises(ArtifactError, match="names item 'c'"):
        read_histories(tmp_path / "h.parquet", IdMap(["a", "b"]))


def test_events_are_told_apart_by_time_and_kind(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    kinds = pa.array(["view", "buy", "view"]).dictionary_encode()
    write_histories(path, ["u", "v"], Ragged.of([[0, 1], [2]]), ITEMS, times_us=np.array([10, 20, 30]), kinds=kinds)
    events = read_histories(path, ITEMS).events
    assert events.fits(Seen(since_us=20)).tolist() == [False, True, True]
    assert events.fits(Seen(frozenset({"view"}))).tolist() == [True, False, True]
    assert events.fits(Seen(frozenset({"view", "rent"}), since_us=11)).tolist() == [False, False, True]


def test_conditions_that_the_events_cannot_answer_are_refused(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.parquet", ["u"], Ragged.of([[0]]), ITEMS)
    events = read_histories(tmp_path / "h.parquet", ITEMS).events
    with pytest.raises(ConfigError, match=r"exclude_seen\.within_days.*have no dates"):
        events.fits(Seen.within(days=1))
    with pytest.raises(ConfigError, match=r"exclude_seen\.kinds.*have no kinds"):
        events.fits(Seen.within(kinds=["buy"]))


@pytest.mark.parametrize("wrong", [{}, {"kinds": []}, {"days": 0}, {"days": float("nan")}, {"days": 1e9}])
def test_conditions_that_say_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="exclude_seen"):
        Seen.within(**wrong)  # type: ignore[arg-type]


def test_days_are_counted_back_from_now() -> None:
    assert Seen.within(days=0.5, now_us=50_000_000_000) == Seen(None, 6_800_000_000)


def test_without_users(tmp_path: Path) -> None:
    write_histories(tmp_path / "h.parquet", [], Ragged.empty(0), ITEMS)
    assert read_histories(tmp_path / "h.parquet", ITEMS).get("u") == []


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "h.parquet"
    path.write_bytes(b"no parquet")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_histories(path, ITEMS)
    pq.write_table(pa.table({"user_id": ["u"], "item_id": [["a"]], "_tokens": [[1]]}), path)
    with pytest.raises(ArtifactError, match="has format 1; this version reads format 2: publish the release again"):
        read_histories(path, ITEMS)
