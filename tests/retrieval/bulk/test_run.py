"""Candidates of many users: those of `Release.recommend`, whoever answers, and also after a kill."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.online.seen import Seen
from recsys_ray.retrieval.bulk.folder import Folder
from recsys_ray.retrieval.bulk.run import Bulk, recommend_users
from recsys_ray.retrieval.filters import Range
from recsys_ray.retrieval.release import Release, load_release

pytestmark = pytest.mark.slow

USERS = 300


@pytest.fixture(scope="module")
def release(release_path: Path) -> Release:
    return load_release(release_path)


@pytest.fixture
def bulk(release_path: Path, tmp_path: Path) -> Bulk:
    return Bulk(release_path, tmp_path / "to", k=8, users_per_file=70)


def lists(folder: Path) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in pq.read_table(folder).to_pylist():
        found.setdefault(row.pop("user_id"), []).append(row)
    return found


def assert_same(found: list[dict[str, Any]], release: Release, user_id: str, **asked: Any) -> None:
    wanted = release.recommend(user_id=user_id, **asked)
    assert [row["rank"] for row in found] == list(range(1, len(wanted) + 1))
    assert [row["item_id"] for row in found] == [item.item_id for item in wanted]
    assert [dict(row["channels"]) for row in found] == [item.channels for item in wanted]
    assert [row["score"] for row in found] == pytest.approx([item.score for item in wanted], rel=1e-6)


def test_every_user_gets_what_recommend_says(bulk: Bulk, release: Release, capsys: pytest.CaptureFixture[str]) -> None:
    assert recommend_users(bulk, on_ray=False) == USERS
    found = lists(bulk.to)
    assert set(found) == set(release.histories.user_ids.ids)
    assert any(not release.histories.get(user) for user in found)
    for user, rows in found.items():
        assert_same(rows, release, user, k=8)
    assert f"Recommending: {USERS} of {USERS} users" in capsys.readouterr().err
    assert (bulk.to / "_SUCCESS").is_file()


def test_filters_and_seen_events_hold(bulk: Bulk, release: Release) -> None:
    asked = replace(bulk, filters=Range("year", 2000, 2010), kinds=("purchase",), k=200)
    recommend_users(asked, on_ray=False)
    found = lists(bulk.to)
    for user in release.histories.user_ids.ids[:40]:
        seen = Seen(frozenset({"purchase"}))
        assert_same(found[user], release, user, k=200, filters=asked.filters, exclude_seen=seen)


def test_seen_items_come_back_when_asked_for(bulk: Bulk, release: Release) -> None:
    recommend_users(replace(bulk, exclude_seen=False), on_ray=False)
    for user, rows in list(lists(bulk.to).items())[:40]:
        assert_same(rows, release, user, k=8, exclude_seen=False)


def test_users_of_a_file(bulk: Bulk, release: Release, tmp_path: Path) -> None:
    file = tmp_path / "users.txt"
    file.write_text("u7\n\n u3 \r\nstranger ü\nu7")
    assert recommend_users(replace(bulk, users=file, users_per_file=2), on_ray=False) == 4
    parts = [pq.read_table(path).column("user_id").unique().to_pylist() for path in sorted(bulk.to.glob("part-*"))]
    assert parts == [["u7", "u3"], ["stranger ü", "u7"]]
    assert_same(lists(bulk.to)["stranger ü"], release, "stranger ü", k=8)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="UTF-8"):
        recommend_users(replace(bulk, users=file, to=tmp_path / "other"), on_ray=False)


def test_another_question_is_refused_and_the_same_costs_nothing(bulk: Bulk, tmp_path: Path) -> None:
    asked = replace(bulk, within_days=30)
    recommend_users(asked, on_ray=False)
    before = {path: path.stat().st_mtime_ns for path in bulk.to.glob("part-*")}
    for other in (
        replace(asked, k=9),
        replace(asked, within_days=None),
        replace(asked, within_days=31),
        replace(asked, filters=Range("year", 2000)),
        replace(asked, users_per_file=71),
    ):
        with pytest.raises(ConfigError, match="holds the answers to another question"):
            recommend_users(other, on_ray=False)
    recommend_users(asked, on_ray=False)
    assert {path: path.stat().st_mtime_ns for path in bulk.to.glob("part-*")} == before
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ConfigError, match="new, empty"):
        recommend_users(replace(bulk, to=tmp_path / "photos"), on_ray=False)


def test_two_runs_do_not_write_to_one_folder(bulk: Bulk) -> None:
    with Folder(bulk.to.resolve()).alone(), pytest.raises(ConfigError, match="no other run"):
        recommend_users(bulk, on_ray=False)


def test_a_killed_run_goes_on_where_it_was(
    release_path: Path, tmp_path: Path, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    users, to = tmp_path / "users.txt", tmp_path / "to"
    users.write_text("\n".join(f"u{number % USERS}" for number in range(1500)))
    command = [sys.executable, "-m", "recsys_ray", "recommend", str(release_path), "--users", str(users)]
    command += ["--to", str(to), "-k", "5", "--users-per-file", "20", "--no-ray"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    wait_until(lambda: (to / "part-000003.parquet").is_file())
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = {path.name: path.stat().st_ino for path in to.glob("part-*")}
    assert 4 <= len(kept) < 75
    assert not (to / "_SUCCESS").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert f"{20 * len(kept):,} of 1,500 users are done already" in again.stderr
    assert {path.name: path.stat().st_ino for path in to.glob("part-*")}.items() >= kept.items()
    assert not list(to.glob(".*"))
    whole = Bulk(release_path, tmp_path / "whole", users, k=5, users_per_file=20)
    recommend_users(whole, on_ray=False)
    assert pq.read_table(to).equals(pq.read_table(whole.to))
    assert json.loads((to / "_question.json").read_text())["k"] == 5


@pytest.mark.ray
def test_ray_answers_the_same(ray_cluster: None, bulk: Bulk, tmp_path: Path) -> None:
    asked = replace(bulk, filters=Range("year", 2000, 2010), kinds=("purchase",))
    recommend_users(asked, on_ray=False)
    on_ray = replace(asked, to=tmp_path / "ray")
    assert recommend_users(on_ray, on_ray=True) == USERS
    assert tables(on_ray.to) == tables(bulk.to)


def tables(folder: Path) -> dict[str, pa.Table]:
    return {path.name: pq.read_table(path) for path in folder.glob("part-*")}
