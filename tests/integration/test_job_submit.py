"""`ray job submit`, then `serve deploy`, against a real head on free ports, for clients with the token alone."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.retrieval.release import load_release
from serve_app.run import wait_until_ready

ROOT = Path(__file__).parents[2]
RAY = str(Path(sysconfig.get_path("scripts")) / "ray")
SERVE = str(Path(sysconfig.get_path("scripts")) / "serve")
START_WITHIN_S = 90
PORTS = (
    "port",
    "dashboard-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "runtime-env-agent-port",
    "metrics-export-port",
    "ray-client-server-port",
)

pytestmark = pytest.mark.ray


@dataclass(frozen=True)
class Head:
    """A running head: where its dashboard and its node's agent answer, and the environment that a client needs."""

    address: str
    agent: str
    env: dict[str, str]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    """A head in a process group of its own, which is all that is ended afterwards."""
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as session:
        *numbers, statistics, metrics = _free_ports(len(PORTS) + 2)
        env = _environment() | {
            "RAY_SERVE_HAPROXY_STATS_PORT": str(statistics),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        }
        ports = dict(zip(PORTS, numbers, strict=True))
        command = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--temp-dir={session}"]
        command += ["--num-cpus=2", f"--object-store-memory={200 * 1024**2}", "--disable-usage-stats"]
        command += [f"--{name}={port}" for name, port in ports.items()]
        log = Path(session) / "head.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                command, env=env, stdout=out, stderr=subprocess.STDOUT, cwd=session, start_new_session=True
            )
        dashboard, agent = ports["dashboard-port"], ports["dashboard-agent-listen-port"]
        started = Head(f"http://127.0.0.1:{dashboard}", f"http://127.0.0.1:{agent}", env)
        try:
            _wait_until_healthy(started, process, log)
            yield started
        finally:
            _end(process)


@pytest.fixture(scope="module")
def storage(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a submitted run leaves."""
    folder = tmp_path_factory.mktemp("job")
    raw = make_synthetic(folder / "raw", users=60, items=40, events_per_user=8)
    storage = folder / "storage"
    run = ["recsys-ray", "run", "--preset", "tiny", "--storage", str(storage)]
    settings = [
        f"data.items={raw.items}",
        f"data.events={raw.events}",
        "split.protocol=leave_one_out",
        "training.workers=1",  # by Ray Train, on the cluster that the job runs on
        "training.epochs=1",
        "publish.fit_on=strict",
    ]
    for setting in settings:
        run += ["--set", setting]

    done = _submit(head, _working_dir(folder / "project"), *run)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "joining the cluster" in done.stdout, "the run started a cluster of its own instead of using the job's"
    return storage


def test_a_submitted_run_leaves_its_report(storage: Path) -> None:
    report = json.loads((storage / "report.json").read_text())
    assert report["users"] == 60
    assert 0 < report["metrics"]["fused"]["recall@100"] <= 1
    assert (storage / "release").is_dir()


def test_serve_deploy_serves_what_the_run_published(head: Head, storage: Path, tmp_path: Path) -> None:
    """`serve_app/serve.yaml` as it is, but for the release's path and where it listens."""
    (port,) = _free_ports(1)
    config = yaml.safe_load((ROOT / "serve_app" / "serve.yaml").read_text())
    config["http_options"] |= {"host": "127.0.0.1", "port": port}
    config["applications"][0]["args"]["release"] = str(storage / "release")
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))

    deploy = [SERVE, "deploy", "serve.yaml", f"--address={head.address}"]
    done = subprocess.run(deploy, cwd=tmp_path, env=head.env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until_ready(f"http://127.0.0.1:{port}", 120)

    expected = load_release(storage / "release").recommend(user_id="u3", k=5)
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/recommend", json={"user_id": "u3", "k": 5}).json()
    assert [item["item_id"] for item in answer["items"]] == [one.item_id for one in expected]
    assert answer["degraded"] == []
    assert httpx.get(f"http://127.0.0.1:{port}/").headers["content-type"].startswith("text/html")
    assert httpx.get(f"http://127.0.0.1:{port}/-/healthz").status_code == 200  # what the probes in clusters/kuberay ask


def test_a_client_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    stranger = replace(head, env=head.env | {"RAY_AUTH_TOKEN": secrets.token_hex(32)})
    done = _submit(stranger, tmp_path, "true")
    assert done.returncode != 0
    assert "403" in done.stderr or "Forbidden" in done.stderr or "authentication" in done.stderr.lower()


def test_health_is_open_to_probes_and_the_rest_is_not(head: Head) -> None:
    """What the probes in clusters/kuberay ask."""
    assert _status(f"{head.address}/api/gcs_healthz") == 200
    assert _status(f"{head.agent}/api/local_raylet_healthz") == 200
    assert _status(f"{head.address}/api/jobs/") == 401


def _submit(head: Head, working_dir: Path, *command: str) -> subprocess.CompletedProcess[str]:
    submit = [RAY, "job", "submit", f"--address={head.address}", "--working-dir=.", "--", *command]
    return subprocess.run(
        submit, cwd=working_dir, env=head.env, capture_output=True, text=True, timeout=240, check=False
    )


def _working_dir(folder: Path) -> Path:
    """What of the repository has to travel: the packages. Ray leaves out .git and .venv by itself."""
    for package in ("recsys_ray", "serve_app", "tune"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return inherited | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "OMP_NUM_THREADS": "1",
        # The switches that serve.yaml asks for, at the head and where `serve deploy` runs.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    }


def _free_ports(count: int) -> list[int]:
    """Ports held open together, so that no two are the same."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(taken.getsockname()[1]) for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


def _wait_until_healthy(head: Head, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + START_WITHIN_S
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        if _status(f"{head.address}/api/gcs_healthz") == 200 and _agent_is_there(head):
            return
        try:
            process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            continue
    pytest.fail(f"the head did not come up within {START_WITHIN_S} s:\n{log.read_text()}")


def _agent_is_there(head: Head) -> bool:
    """Jobs run through the node's agent, which registers some seconds after the dashboard answers."""
    return _status(f"{head.address}/api/jobs/", head.env["RAY_AUTH_TOKEN"]) == 200


def _status(url: str, token: str | None = None) -> int:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the head and what it started, by their ids; nothing in it is worth an orderly shutdown of ten seconds."""
    if process.poll() is None:
        ours = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for each in ours:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        psutil.wait_procs(ours, timeout=15)
    process.wait()
