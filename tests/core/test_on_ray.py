"""Joining and leaving clusters, each case in a process of its own, as `ray.init` is one a process."""

import os
import subprocess
import sys

import pytest

from recsys_ray.core.on_ray import connected

PRIVATE = """
import os, ray
from recsys_ray.core.on_ray import connected

@ray.remote
def threads():
    return os.environ["OMP_NUM_THREADS"]

with connected(num_cpus=1, object_store_bytes=100 * 1024**2) as connection:
    assert connection.private and connection.ours, connection
    assert ray.cluster_resources()["CPU"] == 1
    print("threads", ray.get(threads.remote()))
    with connected() as inner:
        assert not inner.ours and inner.address == connection.address, inner
    assert ray.is_initialized(), "the inner block shut down the outer one's cluster"
assert not ray.is_initialized(), "the cluster outlived its block"
print("left")
"""

REFUSED = """
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.on_ray import connect

for sizes in ({"num_cpus": 4}, {}):
    try:
        connect("127.0.0.1:1", **sizes)
    except ConfigError as error:
        print(error)
"""


def _run(script: str, **env: str) -> list[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "RAY_ADDRESS")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=inherited | env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.ray
def test_a_private_cluster_ends_with_its_block_and_gives_each_worker_one_thread() -> None:
    assert _run(PRIVATE) == ["threads 1", "left"]


@pytest.mark.ray
def test_a_cluster_that_was_there_before_stays(ray_cluster: None) -> None:
    import ray

    with connected() as connection:
        assert not connection.ours
    assert ray.is_initialized()


def test_a_cluster_to_join_must_answer_and_keeps_its_size() -> None:
    sized, dead = _run(REFUSED)
    assert sized.startswith("num_cpus: got 4")
    assert "already running" in sized
    assert dead.startswith("address: got '127.0.0.1:1'; allowed: host:port of a running head")
