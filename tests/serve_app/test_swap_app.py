"""Swaps in the real application on Ray Serve, under load: two collapsed replicas, and the composed topology.

A short form runs with every test run; `make chaos` swaps twenty times.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from recsys_ray.retrieval.release import load_release
from serve_app.app import build_app
from serve_app.config import ServeConfig
from serve_app.run import free_port, wait_until_ready
from tests.serve_app.swapping import BROKEN, ONE, OTHER, Load, Offline, point_at, start_over

pytestmark = pytest.mark.ray

_MAIN = """
import json, sys
from serve_app.config import ServeConfig
from serve_app.run import run
run(ServeConfig.parse(json.loads(sys.argv[1])), port=int(sys.argv[2]), ingress="haproxy")
"""
FREE = {"num_cpus": 0}  # the cluster belongs to all tests of the session
CLIENTS = 3
Wait = Callable[[Callable[[], object]], None]


class App:
    """A running application over a folder of releases."""

    def __init__(self, name: str, address: str, folder: Path, replicas: int) -> None:
        self.name, self.address, self.folder, self.replicas = name, address, folder, replicas

    def status(self) -> list[dict[str, Any]]:
        """The status of every gateway replica that answered one of many questions."""
        found = {}
        for _ in range(12 * self.replicas):
            try:
                status = httpx.get(f"{self.address}/v1/status", timeout=10).json()
                found[status["live"]["replica"]] = status
            except (httpx.HTTPError, KeyError, ValueError):
                continue
        return list(found.values())

    def loading(self) -> int | None:
        """The process of a replica that was met while it loaded a release: less than a second, so it is asked often."""
        for _ in range(20):
            status = httpx.get(f"{self.address}/v1/status", timeout=10).json()
            if status["following"]["loading"]:
                return int(status["live"]["replica"].rpartition(":")[2])
        return None

    def all_answer_with(self, release: str) -> bool:
        found = self.status()
        return len(found) == self.replicas and all(one["release"] == release for one in found)

    def all_refuse(self, release: str) -> bool:
        found = [one["following"]["refused"] for one in self.status()]
        return len(found) == self.replicas and all(one and one["release"] == release for one in found)

    def gateway_pids(self) -> list[int]:
        from ray import serve

        details = serve.context._get_global_client().get_serve_details()
        replicas = details["applications"][self.name]["deployments"]["gateway"]["replicas"]
        return [int(replica["pid"]) for replica in replicas]


@pytest.fixture(scope="module")
def port(ray_cluster: None) -> Iterator[int]:
    from ray import serve

    port = free_port()
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    yield port
    serve.shutdown()


@pytest.fixture(params=["collapsed", "composed"])
def app(
    request: pytest.FixtureRequest, port: int, two_releases: Path, tmp_path: Path, wait_until: Wait
) -> Iterator[App]:
    from ray import serve

    replicas = 2 if request.param == "collapsed" else 1
    start_over(two_releases)
    values = {
        "release": str(two_releases),
        "topology": request.param,
        "shards": {"nearest": 2} if request.param == "composed" else {},
        "live": {"store": f"sqlite:{tmp_path / 'live.sqlite'}"},
        "gateway": {**FREE, "replicas": replicas},
        "encoder": FREE,
        "channel": FREE,
    }
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    name = f"swap_{request.param}"
    serve.run(build_app(ServeConfig.parse(values)), name=name, route_prefix=f"/{name}", logging_config=quiet)
    started = App(name, f"http://127.0.0.1:{port}/{name}", two_releases, replicas)
    wait_until_ready(started.address, 120)
    wait_until(lambda: started.all_answer_with(ONE))
    yield started
    serve.delete(name)


@pytest.fixture(scope="module")
def offline(two_releases: Path) -> Offline:
    return Offline(*(load_release(two_releases / name) for name in (ONE, OTHER)))


def swap_under_load(app: App, offline: Offline, swaps: int, wait_until: Wait) -> Load:
    """Swap back and forth, with a broken release by force in the middle; the load, which noticed nothing."""
    with Load(f"{app.address}/v1/recommend", offline, CLIENTS) as load:
        for number in range(swaps):
            if number == swaps // 2:
                point_at(app.folder, BROKEN)
                wait_until(lambda: app.all_refuse(BROKEN))
            release = (OTHER, ONE)[number % 2]
            before = load.answered[release]
            point_at(app.folder, release)
            wait_until(lambda: app.all_answer_with(release))  # noqa: B023 (called at once)
            wait_until(lambda: load.answered[release] > before)  # noqa: B023
    assert load.wrong == []
    assert BROKEN not in load.answered
    return load


def test_swaps_under_load_fail_and_mix_nothing(app: App, offline: Offline, wait_until: Wait) -> None:
    load = swap_under_load(app, offline, 2, wait_until)
    assert min(load.answered[ONE], load.answered[OTHER]) > 0


@pytest.mark.chaos
@pytest.mark.timeout(3600)
def test_twenty_swaps_under_load_fail_and_mix_nothing_and_give_their_memory_back(
    app: App, offline: Offline, wait_until: Wait
) -> None:
    swap_under_load(app, offline, 4, wait_until)  # what is allocated once is there from now on
    before = {pid: resident_bytes(pid) for pid in app.gateway_pids()}
    swap_under_load(app, offline, 20, wait_until)
    after = {pid: resident_bytes(pid) for pid in app.gateway_pids()}
    assert after.keys() == before.keys()
    assert all(after[pid] < 1.1 * before[pid] for pid in before), (before, after)


@pytest.fixture
def behind_haproxy(two_releases: Path, tmp_path: Path) -> Iterator[App]:
    """Two replicas as `recsys-ray serve` runs them: a request whose replica dies is sent to the other one."""
    start_over(two_releases)
    live = {"store": f"sqlite:{tmp_path / 'live.sqlite'}"}
    values = {"release": str(two_releases), "live": live, "gateway": {**FREE, "replicas": 2}}
    port = free_port()
    env = {**os.environ, "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port())}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", _MAIN, json.dumps(values), str(port)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        app = App("", f"http://127.0.0.1:{port}", two_releases, 2)
        wait_until_ready(app.address, 300)
        yield app
    finally:
        process.terminate()
        process.wait(120)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_replica_killed_in_the_middle_of_a_swap_costs_no_read_and_comes_back_on_the_right_release(
    behind_haproxy: App, offline: Offline, wait_until: Wait
) -> None:
    app = behind_haproxy
    wait_until(lambda: app.all_answer_with(ONE))
    with Load(f"{app.address}/v1/recommend", offline, CLIENTS) as load:
        for release in (OTHER, ONE):
            kill_one_that_loads(app, release, wait_until)
    assert load.wrong == []


def kill_one_that_loads(app: App, release: str, wait_until: Wait) -> None:
    """Activate a release, kill a replica while it loads it, and wait until all answer with it again."""
    point_at(app.folder, release)
    met: list[int | None] = []

    def loads() -> bool:
        met.append(app.loading())
        return met[-1] is not None

    wait_until(loads)
    assert met[-1] is not None
    os.kill(met[-1], signal.SIGKILL)
    wait_until(lambda: app.all_answer_with(release))
    assert not any(one["live"]["replica"].endswith(f":{met[-1]}") for one in app.status())


def resident_bytes(pid: int) -> int:
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")
