"""A load client: HTTP/1.1 over loopback from a process of its own, in a closed loop or at Poisson arrivals.

    python benchmarks/load_client.py ADDRESS REQUESTS.json closed CONNECTIONS SECONDS
    python benchmarks/load_client.py ADDRESS REQUESTS.json open ARRIVALS_PER_SECOND SECONDS

REQUESTS.json is a list of ``[path, body]``. It prints one JSON object: `Load`. In the open loop a request's time runs
from when it should have been sent, so that a client that falls behind cannot make a server look quick.
"""

import asyncio
import json
import math
import random
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_MOST_CONNECTIONS = 3000
_LAST_ANSWERS_S = 5.0
_LENGTH = b"content-length: "


@dataclass
class Load:
    """What came of it.

    Attributes:
        seconds: For so long requests were sent.
        sent: How many.
        lag_ms: The client's own delay in sending, at the 95th percentile: beyond a few it is the bottleneck.
        milliseconds: Status to the time of each answer that came, in milliseconds.
        undegraded: Answers that name nothing in `degraded`.
        lost: Requests without an answer.
    """

    seconds: float
    sent: int = 0
    lag_ms: float = 0.0
    milliseconds: dict[int, list[float]] = field(default_factory=dict)
    undegraded: int = 0
    lost: int = 0


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(
        self, answered: Callable[["Connection", int, bytes], None], ended: Callable[["Connection"], None]
    ) -> None:
        self._answered = answered
        self._ended = ended
        self._transport: asyncio.Transport | None = None
        self._came = bytearray()
        self._needed = 0
        self.since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def ask(self, request: bytes, since: float) -> None:
        """Send a request whose time runs from `since`."""
        assert self._transport is not None
        self.since = since
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._came += data
        if not self._needed:
            head = self._came.find(b"\r\n\r\n")
            if head < 0:
                return
            start = self._came[:head].lower().find(_LENGTH) + len(_LENGTH)
            self._needed = head + 4 + int(self._came[start : self._came.find(b"\r\n", start)])
        if len(self._came) < self._needed:
            return
        status, body = int(self._came[9:12]), bytes(self._came)
        self._came.clear()
        self._needed = 0
        self._answered(self, status, body)

    def connection_lost(self, error: Exception | None) -> None:
        self._ended(self)


class Client:
    """The connections of one load, and what they were answered."""

    def __init__(self, address: str, requests: list[bytes], seconds: float) -> None:
        parts = urlsplit(address)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._requests = requests
        self._idle: deque[Connection] = deque()
        self._open = 0
        self._under_way: set[Connection] = set()
        self._lags_ms: list[float] = []
        self._again = False
        self.load = Load(seconds)

    async def closed(self, connections: int) -> None:
        """As many requests at a time as there are connections."""
        self._again = True
        end = time.perf_counter() + self.load.seconds
        for _ in range(connections):
            await self._send(time.perf_counter())
        await asyncio.sleep(end - time.perf_counter())
        self._again = False
        await self._last_answers()

    async def open(self, arrivals_per_s: float) -> None:
        """Requests at Poisson arrivals, whatever is answered."""
        loop = asyncio.get_running_loop()
        draw = random.Random(0)
        due = start = time.perf_counter()
        sending: set[asyncio.Task[None]] = set()
        while due < start + self.load.seconds:
            while due <= time.perf_counter():
                if self._idle:
                    self._ask(self._idle.pop(), due)
                else:
                    task = loop.create_task(self._send(due))
                    sending.add(task)
                    task.add_done_callback(sending.discard)
                due -= math.log(1.0 - draw.random()) / arrivals_per_s
            await asyncio.sleep(max(0.0, min(due - time.perf_counter(), 0.001)))
        await asyncio.gather(*sending)
        await self._last_answers()

    async def _send(self, since: float) -> None:
        if self._open >= _MOST_CONNECTIONS:
            self.load.sent += 1
            self.load.lost += 1
            return
        self._open += 1
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                lambda: Connection(self._answered, self._ended), self._host, self._port
            )
        except OSError:
            self._open -= 1
            self.load.sent += 1
            self.load.lost += 1
            return
        self._ask(connection, since)

    def _ask(self, connection: Connection, since: float) -> None:
        self._lags_ms.append((time.perf_counter() - since) * 1e3)
        self._under_way.add(connection)
        connection.ask(self._requests[self.load.sent % len(self._requests)], since)
        self.load.sent += 1

    def _answered(self, connection: Connection, status: int, answer: bytes) -> None:
        now = time.perf_counter()
        self._under_way.discard(connection)
        self.load.milliseconds.setdefault(status, []).append(round((now - connection.since) * 1e3, 3))
        self.load.undegraded += status == 200 and (b'"degraded":[]' in answer or b'"degraded"' not in answer)
        if self._again:
            self._ask(connection, now)
        else:
            self._idle.append(connection)

    def _ended(self, connection: Connection) -> None:
        self._open -= 1
        if connection in self._under_way:
            self._under_way.discard(connection)
            self.load.lost += 1
        elif connection in self._idle:
            self._idle.remove(connection)

    async def _last_answers(self) -> None:
        end = time.perf_counter() + _LAST_ANSWERS_S
        while self._under_way and time.perf_counter() < end:
            await asyncio.sleep(0.01)
        self.load.lost += len(self._under_way)
        self._lags_ms.sort()
        self.load.lag_ms = self._lags_ms[int(0.95 * (len(self._lags_ms) - 1))] if self._lags_ms else 0.0


def _raw(path: str, body: object, host: str) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def main() -> None:
    address, file, how, much, seconds = sys.argv[1:]
    requests = [_raw(path, body, urlsplit(address).netloc) for path, body in json.loads(Path(file).read_text())]
    client = Client(address, requests, float(seconds))
    asyncio.run(client.closed(int(much)) if how == "closed" else client.open(float(much)))
    print(json.dumps(asdict(client.load)))


if __name__ == "__main__":
    main()
