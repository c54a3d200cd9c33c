"""`run` in a process of its own, as the command line uses it: the fast ingress, an answer, a clean end."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from recsys_ray.core.errors import ArtifactError, ConfigError
from serve_app.config import ServeConfig
from serve_app.run import free_port, run

_MAIN = """
import sys
from serve_app.config import ServeConfig
from serve_app.run import run
run(ServeConfig.parse({"release": sys.argv[1], "gateway": {"num_cpus": 0}}), port=int(sys.argv[2]), ingress="haproxy")
"""


@pytest.fixture
def served(release_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    port, metrics_port = free_port(), free_port()
    env = {**os.environ, "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port)}
    env.pop("RAY_ADDRESS", None)
    command = [sys.executable, "-c", _MAIN, str(release_path), str(port)]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process, f"http://127.0.0.1:{port}", metrics_port
    finally:
        process.kill()
        process.communicate()


@pytest.mark.ray
def test_serves_behind_haproxy_until_interrupted(served: tuple[subprocess.Popen[str], str, int]) -> None:
    process, address, metrics_port = served
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if "press Ctrl-C" in line:
            break
    assert any(f"ready at {address}" in line for line in said), "".join(said)
    answer = httpx.post(f"{address}/v1/recommend", json={"user_id": "u1", "k": 3})
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 3
    assert answer.headers.get_list("x-request-id") == [answer.json()["request_id"]]
    assert "haproxy_process_" in httpx.get(f"http://127.0.0.1:{metrics_port}/metrics").text
    process.send_signal(signal.SIGTERM)
    printed, rest = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert printed == ""  # nothing of a call that failed, for one
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/livez")


def test_a_taken_port_is_named_before_anything_starts() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: got {port}"):
            run(ServeConfig(release="x"), port=port, blocking=False)


def test_a_missing_release_is_named_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no release"):
        run(ServeConfig(release=str(tmp_path)), port=0, blocking=False)
