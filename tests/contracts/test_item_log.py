"""The laws of `online/item_log.py`, for every log."""

import subprocess
import sys
from pathlib import Path

import pytest

from recsys_ray.online.item_log import ItemChange, ItemLog
from recsys_ray.online.stores import open_item_log


@pytest.fixture(params=["sqlite", "redis"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty log."""
    if request.param == "redis":
        return str(request.getfixturevalue("redis_url"))
    return f"sqlite:{tmp_path / 'live.sqlite'}"


def everything(log: ItemLog, limit: int = 3) -> list[ItemChange]:
    changes: list[ItemChange] = []
    while found := log.read(changes[-1].sequence if changes else 0, limit):
        assert len(found) <= limit
        changes += found
    return changes


def test_changes_are_read_in_order_from_any_sequence(address: str) -> None:
    log, reader = open_item_log(address), open_item_log(address)
    assert log.head().sequence == 0
    assert everything(log) == []
    sequences = [log.append(f"i{number}", b"%d" % number) for number in range(7)]
    assert sequences == sorted(set(sequences))
    changes = everything(reader)
    assert [(one.item_id, one.body) for one in changes] == [(f"i{number}", b"%d" % number) for number in range(7)]
    assert [one.slot for one in changes] == list(range(7))
    assert reader.head().sequence == sequences[-1]
    assert reader.read(sequences[3], 100) == changes[4:]


def test_only_the_newest_change_of_an_item_stays_and_its_slot_never_changes(address: str) -> None:
    log = open_item_log(address)
    for item, body in [("ü \x00", b"1"), ("b", b"\x00\xff"), ("ü \x00", b"2"), ("b", None), ("c", b"3")]:
        log.append(item, body)
    found = [(one.item_id, one.slot, one.body) for one in everything(log)]
    assert found == [("ü \x00", 0, b"2"), ("b", 1, None), ("c", 2, b"3")]
    log.append("b", b"again")
    assert [(one.slot, one.body) for one in everything(log)][-1] == (1, b"again")


def test_another_log_has_another_epoch(address: str, tmp_path: Path) -> None:
    log = open_item_log(address)
    log.append("a", b"1")
    other = open_item_log(f"sqlite:{tmp_path / 'other.sqlite'}")
    assert open_item_log(address).head().epoch == log.head().epoch != other.head().epoch


WRITER = """
import itertools, sys
from recsys_ray.online.stores import open_item_log
address, name, count = sys.argv[1:]
log = open_item_log(address)
for number in itertools.islice(itertools.count(), int(count) or None):
    item = f"{name}{number % 10 if int(count) else number}"
    print(log.append(item, b"body"), item, flush=True)
"""


def start_writer(address: str, name: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, address, name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_what_was_written_outlives_a_killed_writer(address: str) -> None:
    writer = start_writer(address, "i", 0)
    assert writer.stdout is not None
    acknowledged = [writer.stdout.readline().split() for _ in range(20)]
    writer.kill()
    writer.communicate()
    changes = everything(open_item_log(address), 1000)
    assert [[str(one.sequence), one.item_id] for one in changes][:20] == acknowledged


def test_a_reader_beside_many_writers_misses_nothing(address: str) -> None:
    """Read on from the newest sequence seen while others write: numbers must become visible in their order."""
    log = open_item_log(address)
    writers = [start_writer(address, name, 25) for name in "ab"]
    seen: dict[str, ItemChange] = {}
    after = 0
    for writer in writers:
        assert writer.stdout is not None
        for _ in writer.stdout:  # each line is an append of one writer, while the other goes on
            for change in log.read(after, 4):
                seen[change.item_id] = change
                after = change.sequence
        assert writer.wait() == 0
    seen |= {change.item_id: change for change in log.read(after, 1000)}
    assert sorted(seen.values(), key=lambda change: change.sequence) == everything(log)
    assert len({change.slot for change in seen.values()}) == len(seen) == 20
