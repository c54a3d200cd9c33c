"""Connect to a Ray cluster and leave it again, without touching a cluster that somebody else started.

An address given here or in ``RAY_ADDRESS`` (which ``ray job submit`` sets) is joined; without one a private local
cluster is started, even where another one runs on the same machine.
"""

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from recsys_ray.core.cluster import LOCAL, RayConfig
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say

# One thread a worker: Ray runs one worker a core, and workers that each spread over all cores slow each other down
# many times over. A value that the user or the submitted job already set is respected.
_WORKER_ENV = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
# What a person should read is said by the driver; all that workers log is in the files of the cluster's session.
_QUIET: dict[str, Any] = {"logging_level": logging.WARNING, "log_to_driver": False}
_CONNECT_TIMEOUT_S = 10.0


def would_be_private(config: RayConfig) -> bool:
    """Whether these settings start a cluster on this machine, whose size is therefore known before."""
    return (config.address or os.environ.get("RAY_ADDRESS") or LOCAL) == LOCAL and not ray.is_initialized()


@dataclass(frozen=True)
class Connection:
    """How this process reaches its cluster.

    Attributes:
        address: ``host:port`` of the cluster's control service.
        private: Whether the cluster was started here and ends when this process leaves it.
        ours: Whether this process was connected here; False when it already was, and then it stays so.
    """

    address: str
    private: bool
    ours: bool


@contextmanager
def connected(
    address: str | None = None,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    dashboard: bool = False,
) -> Iterator[Connection]:
    """`connect` for the length of a with block."""
    connection = connect(address, num_cpus, object_store_bytes, dashboard)
    try:
        yield connection
    finally:
        disconnect(connection)


def connect(
    address: str | None = None,
    num_cpus: int | None = None,
    object_store_bytes: int | None = None,
    dashboard: bool = False,
) -> Connection:
    """Join the cluster at `address` or ``RAY_ADDRESS``, else start a private one; a process already in one stays there.

    Args:
        address: ``host:port``, ``ray://host:port`` or ``auto``; ``local`` starts a private cluster whatever the
            environment says.
        num_cpus: Logical CPUs of the private cluster; None takes every core.
        object_store_bytes: Memory of its object store; None leaves it to Ray (30 % of the machine's memory).
        dashboard: Whether the private cluster runs Ray's dashboard, which `serve deploy` and jobs need.

    Raises:
        ConfigError: When nothing answers at the address, or a size is given for a cluster that is not started here.
    """
    if ray.is_initialized():
        say(f"Ray: staying in the cluster at {_address()}, which this process was in already; its size stays too")
        return Connection(_address(), private=False, ours=False)
    where = address or os.environ.get("RAY_ADDRESS") or LOCAL
    if where == LOCAL:
        _start(num_cpus, object_store_bytes, dashboard)
    else:
        _refuse_sizes(where, num_cpus=num_cpus, object_store_bytes=object_store_bytes)
        _join(where)
    return Connection(_address(), private=where == LOCAL, ours=True)


def cluster_cpus() -> int:
    """CPUs of the cluster that this process is connected to, one at least."""
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return max(1, int(resources.get("CPU", 1)))


@contextmanager
def quiet_data() -> Iterator[None]:
    """Our own progress line instead of Ray Data's bars and plans; its errors still show."""
    import ray.data  # seconds more than Ray itself

    context, logger = ray.data.DataContext.get_current(), logging.getLogger("ray.data")
    shown, level = context.enable_progress_bars, logger.level
    context.enable_progress_bars = False
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        logger.setLevel(level)


def disconnect(connection: Connection) -> None:
    """Leave the cluster, which ends it when it is private; nothing happens when `connect` found the process in one."""
    if connection.ours:
        ray.shutdown()


def _start(num_cpus: int | None, object_store_bytes: int | None, dashboard: bool) -> None:
    say(f"Ray: starting a private cluster of {num_cpus or os.cpu_count()} CPUs on this machine")
    # That a private cluster is guarded by a token is its default, nothing to warn of.
    logging.getLogger("ray._private.authentication.authentication_token_setup").setLevel(logging.ERROR)
    ray.init(
        address=LOCAL,
        num_cpus=num_cpus,
        object_store_memory=object_store_bytes,
        include_dashboard=dashboard,
        runtime_env=_runtime_env(),
        **_QUIET,
    )


def _join(where: str) -> None:
    say(f"Ray: joining the cluster at {where}")
    try:
        _require_listener(where)
        ray.init(address=where, runtime_env=_runtime_env(), **_QUIET)
    except (OSError, ValueError, RuntimeError) as error:
        allowed = "host:port of a running head, ray://host:port, auto, or local"
        raise ConfigError("address", where, allowed, f"It does not answer: {error}") from error


def _require_listener(where: str) -> None:
    """Ray itself retries an address where nothing listens for many minutes."""
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S).close()


def _runtime_env() -> dict[str, dict[str, str]]:
    """Only what is not set yet: Ray refuses a driver whose variables differ from those of its job."""
    return {"env_vars": {name: value for name, value in _WORKER_ENV.items() if name not in os.environ}}


def _refuse_sizes(where: str, **sizes: int | None) -> None:
    for name, value in sizes.items():
        if value is not None:
            hint = f"The cluster at {where} is already running: its own configuration sets its size."
            raise ConfigError(name, value, "nothing, when a cluster is joined", hint)


def _address() -> str:
    return str(ray.get_runtime_context().gcs_address)
