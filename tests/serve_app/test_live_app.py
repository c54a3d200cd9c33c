"""Live state with two replicas of the real application on Ray Serve: seen by each, also after kill -9 and a restart."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from serve_app.app import build_app
from serve_app.config import Live, Scale, ServeConfig
from serve_app.run import free_port, wait_until_ready

pytestmark = pytest.mark.ray

APP, WITHIN_S, RECOVERS_S = "live", 1.0, 60.0
NEW = {"fields": {"title": "Zanzibar", "category": "ocean", "price": 12.5}}
ONLY_NEW = {"history": ["i1"], "filters": {"op": "equals", "field": "price", "value": 12.5}}


class App:
    """The running application, which can be stopped and started again over the same store."""

    def __init__(self, release: Path, store: Path) -> None:
        free = Scale(num_cpus=0)  # the cluster belongs to all tests of the session
        gateway = Scale(num_cpus=0, replicas=2)
        self._config = ServeConfig(
            release=str(release), live=Live(store=f"sqlite:{store}"), gateway=gateway, encoder=free, channel=free
        )
        self._port = free_port()
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self._port}/{APP}", timeout=10)

    def start(self) -> None:
        from ray import serve

        quiet = {"enable_access_log": False, "log_level": "ERROR"}
        serve.start(http_options={"host": "127.0.0.1", "port": self._port}, logging_config=quiet)
        serve.run(build_app(self._config), name=APP, route_prefix=f"/{APP}", logging_config=quiet)
        wait_until_ready(str(self.client.base_url).rstrip("/"), 60)

    def stop(self) -> None:
        from ray import serve

        serve.delete(APP)

    def replicas(self) -> dict[int, int]:
        """Process to sequence number of those that answered one of many questions."""
        found = {}
        for _ in range(25):
            response = self.client.get("/v1/status")
            if response.status_code == 200:
                live = response.json()["live"]
                found[int(live["replica"].rpartition(":")[2])] = live["sequence"]
        return found

    def recommend(self, **body: Any) -> list[list[str]]:
        """The items of many answers, by whichever replicas."""
        answers = [self.client.post("/v1/recommend", json={"k": 100, **body}) for _ in range(25)]
        return [[item["item_id"] for item in answer.raise_for_status().json()["items"]] for answer in answers]


@pytest.fixture(scope="module")
def app(ray_cluster: None, release_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    from ray import serve

    started = App(release_path, tmp_path_factory.mktemp("live") / "live.sqlite")
    started.start()
    yield started
    started.client.close()
    serve.shutdown()


def eventually(holds: Callable[[], bool], within_s: float) -> None:
    end = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end, f"not within {within_s} s"


def all_at(app: App, sequence: int, without: int = 0) -> bool:
    replicas = app.replicas()
    return len(replicas) == 2 and without not in replicas and set(replicas.values()) == {sequence}


def test_events_items_and_deletes_are_seen_by_every_replica_and_outlive_kills_and_restarts(app: App) -> None:
    eventually(lambda: len(app.replicas()) == 2, RECOVERS_S)
    first = app.recommend(user_id="u3")[0]
    seen, deleted = first[0], first[1]

    def holds_for_all() -> bool:
        personal, filtered = app.recommend(user_id="u3"), app.recommend(**ONLY_NEW)
        gone = all(deleted not in items and seen not in items for items in personal)
        return gone and all(items == ["new"] for items in filtered)

    sent = {"events": [{"user_id": "u3", "item_id": seen}]}
    assert app.client.post("/v1/events", json=sent).status_code == 200
    assert all(seen not in items for items in app.recommend(user_id="u3"))  # no waiting at all
    assert app.client.put("/v1/items/new", json=NEW).status_code == 200
    sequence = app.client.delete(f"/v1/items/{deleted}").raise_for_status().json()["sequence"]
    eventually(lambda: all_at(app, sequence), WITHIN_S)
    assert holds_for_all()

    killed = next(iter(app.replicas()))
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: all_at(app, sequence, without=killed), RECOVERS_S)
    assert holds_for_all()

    app.stop()
    app.start()
    eventually(lambda: all_at(app, sequence), RECOVERS_S)
    assert holds_for_all()
