"""Swaps of releases in one replica, without Ray: no failed answer, no mixed one, and nothing left behind."""

import asyncio
import time
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.release import load_release
from serve_app.api import StatusAnswer
from serve_app.config import ServeConfig
from serve_app.deployments import Gateway
from serve_app.opening import first_release, followed_folder
from tests.serve_app.swapping import BROKEN, ONE, OTHER, QUESTIONS, Offline, point_at, start_over

pytestmark = pytest.mark.slow

WITHIN_S = 200.0


@pytest.fixture(scope="module")
def offline(two_releases: Path) -> Offline:
    return Offline(*(load_release(two_releases / name) for name in (ONE, OTHER)))


@pytest.fixture
def gateway(two_releases: Path, tmp_path: Path) -> Callable[[], Gateway]:
    """Starts a replica of its own store over the two releases, of which the first is active."""
    start_over(two_releases)

    def start(**settings: Any) -> Gateway:
        live = {"store": f"sqlite:{tmp_path / 'live.sqlite'}"}
        return Gateway(ServeConfig.parse({"release": str(two_releases), "live": live, **settings}))

    return start


class Asked:
    """An application in this process, asked by several clients at a time."""

    def __init__(self, app: FastAPI, offline: Offline) -> None:
        self._client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", timeout=60)
        self._offline = offline
        self.answered: Counter[str] = Counter()

    async def status(self) -> StatusAnswer:
        return StatusAnswer.model_validate((await self._client.get("/v1/status")).raise_for_status().json())

    async def request(self, method: str, path: str, **body: Any) -> httpx.Response:
        return await self._client.request(method, path, **body)

    async def until(self, holds: Callable[[StatusAnswer], bool], clients: int = 3) -> StatusAnswer:
        """Ask and check answers until the status is as wanted; one round at least."""
        end = time.monotonic() + WITHIN_S
        while True:
            await asyncio.gather(*(self._ask(number) for number in range(clients)))
            status = await self.status()
            if holds(status):
                return status
            assert time.monotonic() < end, status

    async def _ask(self, first: int) -> None:
        for place in range(first, first + len(QUESTIONS)):
            number = place % len(QUESTIONS)
            body = {**QUESTIONS[number], "deadline_ms": 20_000}
            response = await self._client.post("/v1/recommend", json=body)
            self.answered[self._offline.check(number, response.status_code, response.json())] += 1


def answering(release: str) -> Callable[[StatusAnswer], bool]:
    return lambda status: status.release == release


def test_swaps_under_load_fail_and_mix_nothing(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner
) -> None:
    async def swap_three_times(asked: Asked) -> StatusAnswer:
        for release in (OTHER, ONE, OTHER):
            point_at(two_releases, release)
            status = await asked.until(answering(release))
        return status

    asked = Asked(gateway().__serve_build_asgi_app__(), offline)
    status = runner.run(swap_three_times(asked))
    assert (status.following.swaps, status.following.refused, status.following.follows) == (3, None, True)
    assert set(asked.answered) == {ONE, OTHER}


def test_a_broken_release_never_answers_and_the_old_one_does(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner
) -> None:
    """Its pointer is written by force, so nothing looked at it before the replicas do."""

    async def break_and_mend(asked: Asked) -> None:
        await asked.until(answering(ONE))
        point_at(two_releases, BROKEN)
        status = await asked.until(lambda status: status.following.refused is not None)
        assert status.following.refused is not None
        assert (status.release, status.following.refused.release) == (ONE, BROKEN)
        assert "does not hash" in status.following.refused.reason
        metrics = (await asked.request("GET", "/metrics")).text
        assert "recsys_release_refused 1" in metrics
        point_at(two_releases, OTHER)
        status = await asked.until(answering(OTHER))
        assert status.following.refused is None
        (two_releases / "active.json").write_text("{")
        status = await asked.until(lambda status: status.following.refused is not None)
        assert status.release == OTHER

    runner.run(break_and_mend(Asked(gateway().__serve_build_asgi_app__(), offline)))


def test_a_replica_that_starts_while_a_broken_release_is_active_answers_with_the_one_before(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner
) -> None:
    gateway()
    point_at(two_releases, BROKEN)
    asked = Asked(gateway().__serve_build_asgi_app__(), offline)
    runner.run(asked.until(lambda status: status.following.refused is not None))
    assert set(asked.answered) == {ONE}


def test_the_release_before_is_let_go(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner
) -> None:
    """Without a garbage collection: what waits for one is memory that is not back."""
    made = gateway()
    asked = Asked(made.__serve_build_asgi_app__(), offline)
    runner.run(asked.until(answering(ONE)))
    serving = weakref.ref(made.swap.current)
    parts = [weakref.ref(part) for part in held_by(made)]
    assert all(part() is not None for part in (serving, *parts))
    point_at(two_releases, OTHER)
    runner.run(asked.until(answering(OTHER)))
    # Its thread may be on its way through the item log just now.
    runner.run(asked.until(lambda _: serving() is None and not any(part() is not None for part in parts)))


def held_by(gateway: Gateway) -> list[Any]:
    live = gateway.swap.current.live
    channels = live.current.retriever.channels.values()
    return [live, live.current, live.current.catalogue, live.current.histories, *channels]


def test_changes_of_items_hold_in_the_release_that_takes_over(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner
) -> None:
    """The other release has other rows, other towers and an item that the first one was told of by the log alone."""

    async def change_and_swap(asked: Asked) -> None:
        put = {"fields": {"title": "Zanzibar", "category": "ocean", "price": 12.5}}
        for item_id in ("i125", "new"):
            assert (await asked.request("PUT", f"/v1/items/{item_id}", json=put)).status_code == 200
        assert (await asked.request("DELETE", "/v1/items/i3")).status_code == 200
        for release in (ONE, OTHER):
            point_at(two_releases, release)
            while (status := await asked.status()).release != release:
                assert status.following.refused is None
                await asyncio.sleep(0.05)
            assert status.live.sequence == 3
            body = {"history": ["i1"], "k": 100, "filters": {"op": "equals", "field": "price", "value": 12.5}}
            answer = (await asked.request("POST", "/v1/recommend", json=body)).json()
            assert answer["release"] == release
            assert {item["item_id"] for item in answer["items"]} == {"i125", "new"}
            assert (await asked.request("GET", "/v1/items/i3")).status_code == 404
            assert (await asked.request("GET", "/v1/items/i125")).json()["title"] == "Zanzibar"

    runner.run(change_and_swap(Asked(gateway().__serve_build_asgi_app__(), offline)))


def test_nothing_takes_over_that_lacks_what_changed_since(
    gateway: Callable[[], Gateway], two_releases: Path, offline: Offline, runner: asyncio.Runner, tmp_path: Path
) -> None:
    async def lose_the_log(asked: Asked) -> None:
        await asked.until(answering(ONE))
        for file in tmp_path.glob("live.sqlite*"):
            file.write_bytes(b"no database " * 1000)
        point_at(two_releases, OTHER)
        while (status := await asked.status()).following.refused is None:
            await asyncio.sleep(0.05)
        assert status.release == ONE
        assert "item log" in status.following.refused.reason

    runner.run(lose_the_log(Asked(gateway().__serve_build_asgi_app__(), offline)))


def test_one_release_is_served_for_good(two_releases: Path, offline: Offline) -> None:
    point_at(two_releases, OTHER)
    single = ServeConfig(release=str(two_releases / ONE))
    assert followed_folder(single) is None
    assert first_release(single).name == ONE
    still = ServeConfig(release=str(two_releases), follow=False)
    assert followed_folder(still) is None
    assert first_release(still).name == OTHER
    assert followed_folder(ServeConfig(release=str(two_releases.parent))) == two_releases
    with pytest.raises(ConfigError, match="follow"):
        followed_folder(ServeConfig(release=str(two_releases / ONE), follow=True))
