"""Users' live histories for the gateway: an unreachable store costs an answer its live part, never the answer."""

import asyncio
import logging
import time
from collections.abc import Sequence

from recsys_ray.core.config import override
from recsys_ray.core.errors import StoreError
from recsys_ray.online.history import Event, HistoryStore, LiveHistory
from serve_app.calls import in_process
from serve_app.circuit import Circuit
from serve_app.config import Breaker
from serve_app.deadline import Deadline
from serve_app.engine import Trace
from serve_app.problems import Problem

HISTORIES = "histories"
_DEADLINE_SHARE = 0.3
_READERS = 8  # reads wait for a disk or another machine

_log = logging.getLogger(__name__)


class Histories:
    """Reads within a deadline, writes with 503 on failure.

    Args:
        store: None: there are no live histories.
        retry_after_s: What a refused writer is told to wait.
        breaker: Its pauses. One failure is enough here, so that not every request waits for the store to fail again.
    """

    def __init__(self, store: HistoryStore | None, retry_after_s: int, breaker: Breaker) -> None:
        self._store = store
        self._retry_after_s = retry_after_s
        self._read = None if store is None else in_process(store.get, _READERS)
        self.circuit = Circuit(override(breaker, {"failures": 1}))

    async def of(self, user_id: str, deadline: Deadline, trace: Trace) -> LiveHistory:
        """What is known of the user; nothing, named in the trace, when the store does not answer."""
        if self._read is None:
            return LiveHistory()
        timeout_s = deadline.share(_DEADLINE_SHARE).remaining_s
        ticket = self.circuit.enter(time.monotonic())
        if ticket is None:
            trace.failed.append(HISTORIES)
            return LiveHistory()
        start = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                found = await self._read(timeout_s, user_id)
        except TimeoutError:
            trace.late.append(HISTORIES)
            self.circuit.late(ticket, timeout_s, time.monotonic())
            return LiveHistory()
        except StoreError as error:
            _log.warning("histories cannot be read: %s", error)
            trace.failed.append(HISTORIES)
            self.circuit.leave(ticket, False, time.monotonic())
            return LiveHistory()
        finally:
            trace.timings_ms[HISTORIES] = round((time.perf_counter() - start) * 1e3, 3)
        self.circuit.leave(ticket, True, time.monotonic())
        return found

    async def append(self, events: Sequence[tuple[str, Event]]) -> None:
        """Write events.

        Raises:
            Problem: 503 when they were not written.
        """
        store = self._required()
        try:
            await asyncio.to_thread(store.append, events)
        except StoreError as error:
            raise unavailable(error, self._retry_after_s) from error

    async def erase(self, user_id: str) -> None:
        """Forget a user.

        Raises:
            Problem: 503 when that was not written.
        """
        store = self._required()
        try:
            await asyncio.to_thread(store.erase, user_id)
        except StoreError as error:
            raise unavailable(error, self._retry_after_s) from error

    def _required(self) -> HistoryStore:
        if self._store is None:
            raise no_store()
        return self._store


def unavailable(error: StoreError, retry_after_s: int) -> Problem:
    """The answer to a write that did not happen."""
    _log.error("live state was not written: %s", error)
    return Problem(503, "Live state cannot be written now.", headers={"Retry-After": str(retry_after_s)})


def no_store() -> Problem:
    """The answer where the application was started without live state."""
    return Problem(503, "This application keeps no live state: its setting live.store is null.")
