"""The laws of `online/history.py`, for every store of live histories."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from recsys_ray.core.errors import ConfigError, StoreError
from recsys_ray.online.history import Event, HistoryStore, LiveHistory
from recsys_ray.online.stores import open_histories

Open = Callable[[], HistoryStore]
MAX_EVENTS = 5
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return f"sqlite:{tmp_path / 'state' / 'live.sqlite'}"


@pytest.fixture
def user() -> str:
    return f"user {next(_numbers)}: ü\n\x00"  # external ids are any text


@pytest.fixture
def opened(address: str) -> Open:
    return partial(open_histories, address, MAX_EVENTS)


def at(second: int, item: str, kind: str = "view") -> Event:
    return Event(second * 1_000_000, item, kind)


def test_events_come_back_in_the_order_of_their_times(opened: Open, user: str) -> None:
    store = opened()
    assert store.get(user).events == ()
    store.append([(user, at(3, "c")), (user, at(1, "a")), (user + "x", at(2, "z"))])
    store.append([(user, at(2, "b", "buy"))])
    assert store.get(user).events == (at(1, "a"), at(2, "b", "buy"), at(3, "c"))
    assert store.get(user + "x").events == (at(2, "z"),)


def test_another_opening_sees_an_event_at_once(opened: Open, user: str) -> None:
    first, second = opened(), opened()
    for number in range(3):
        first.append([(user, at(number, f"i{number}"))])
        assert len(second.get(user).events) == number + 1


def test_an_event_that_comes_twice_counts_once(opened: Open, user: str) -> None:
    store = opened()
    for _ in range(2):
        store.append([(user, at(1, "a")), (user, at(1, "a", "buy"))])
    assert store.get(user).events == (at(1, "a", "buy"), at(1, "a"))


def test_a_user_keeps_the_newest_events(opened: Open, user: str) -> None:
    store = opened()
    for start in (0, 6):
        store.append([(user, at(second, f"i{second}")) for second in range(start, start + 6)])
    store.append([(user, at(2, "too old"))])
    assert [event.item_id for event in store.get(user).events] == ["i7", "i8", "i9", "i10", "i11"]


def test_erasing_leaves_nothing_behind(opened: Open, user: str) -> None:
    store = opened()
    store.append([(user, at(1, "a")), (user + "x", at(1, "b"))])
    store.erase(user)
    store.erase(user)
    assert store.get(user) == LiveHistory((), erased=True)
    store.append([(user, at(2, "new"))])
    assert opened().get(user) == LiveHistory((at(2, "new"),), erased=True)
    assert store.get(user + "x") == LiveHistory((at(1, "b"),))


WRITER = """
import itertools, sys
from recsys_ray.online.history import Event
from recsys_ray.online.stores import open_histories
address, user, name, count = sys.argv[1:]
store = open_histories(address, 10_000)
for number in itertools.islice(itertools.count(), int(count) or None):
    store.append([(user, Event(number * 1_000_000, f"{name}{number}", "view"))])
    print(f"{name}{number}", flush=True)
"""


def start_writer(address: str, user: str, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, address, user, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_was_written_outlives_a_killed_writer(address: str, opened: Open) -> None:
    writer = start_writer(address, "somebody", "i", 0)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().strip() for _ in range(20)]
    writer.kill()
    writer.communicate()
    assert [event.item_id for event in opened().get("somebody").events][:20] == acknowledged


def test_many_processes_write_at_once(address: str) -> None:
    writers = [start_writer(address, "busy", name, 25) for name in "ab"]
    assert [len(writer.communicate()[0].split()) for writer in writers] == [25, 25]
    assert len(open_histories(address, 10_000).get("busy").events) == 50


def test_a_store_that_cannot_be_reached_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no database, no folder either")
    with pytest.raises(StoreError, match="file"):
        open_histories(f"sqlite:{tmp_path / 'file'}", 5)
    with pytest.raises(StoreError, match="cannot be made"):
        open_histories(f"sqlite:{tmp_path / 'file' / 'live.sqlite'}", 5)
    pytest.importorskip("redis")
    with pytest.raises(StoreError, match="Redis"):
        open_histories(f"unix://{tmp_path / 'nobody.sock'}", 5).get("u")
    with pytest.raises(ConfigError, match=r"live\.store"):
        open_histories("mysql://x", 5)
