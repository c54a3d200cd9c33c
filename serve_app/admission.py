"""What every request passes first: a request id, the limit on requests in flight, counters."""

import re
import time
import uuid
from collections.abc import Callable, MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.concurrency import AdaptiveLimit
from serve_app.config import Limits
from serve_app.headers import waited_s
from serve_app.metrics import Metrics
from serve_app.problems import Problem, problem_response
from serve_app.serving import Serving

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_ALWAYS_ADMITTED = ("/livez", "/readyz", "/metrics", "/admin/")


class Admission:
    """ASGI middleware. It answers 429 itself, before the body is read, so that a refusal costs next to nothing.

    It leaves in ``scope["state"]``: `serving`, the release that this answer is made from; `request_id`; and `arrived`
    (`time.perf_counter`; where a proxy in front says when the request came to it, that time).
    """

    def __init__(self, app: ASGIApp, limits: Limits, current: Callable[[], Serving], metrics: Metrics) -> None:
        self._app = app
        self._limits = limits
        self._current = current
        self._metrics = metrics
        self._taken = AdaptiveLimit(limits.max_in_flight, limits.deadline_ms / 1e3)
        metrics.watch("recsys_in_flight", lambda: self._taken.in_flight)
        metrics.watch("recsys_in_flight_limit", lambda: self._taken.limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Admit one request, or answer 429."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent_id = _sent_request_id(scope)
        request_id = sent_id or uuid.uuid4().hex
        arrived = time.perf_counter() - waited_s(scope["headers"], time.time(), self._limits.max_deadline_ms / 1e3)
        state: MutableMapping[str, Any] = scope.setdefault("state", {})
        serving = self._current()
        state.update(request_id=request_id, arrived=arrived, serving=serving)
        status = 500

        async def send_marked(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                headers.append((b"x-content-type-options", b"nosniff"))
                if sent_id is None:  # an id that came with the request is put on the answer by Ray Serve
                    headers.append((b"x-request-id", request_id.encode()))
            await send(message)

        try:
            if scope["path"].startswith(_ALWAYS_ADMITTED):
                await self._app(scope, receive, send_marked)
            elif self._taken.in_flight >= self._taken.limit:
                await problem_response(self._overloaded(), request_id, serving.id)(scope, receive, send_marked)
            else:
                await self._take_on(scope, receive, send_marked)
        finally:
            self._metrics.observe(_route(scope), status, time.perf_counter() - arrived)

    async def _take_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._taken.begin(time.perf_counter())
        try:
            await self._app(scope, receive, send)
        finally:
            self._taken.end(time.perf_counter())

    def _overloaded(self) -> Problem:
        detail = f"This replica already works on {self._taken.limit} requests. Ask again later."
        return Problem(429, detail, headers={"Retry-After": str(self._limits.retry_after_s)})


def _sent_request_id(scope: Scope) -> str | None:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return bytes(value).decode()
    return None


def _route(scope: Scope) -> str:
    """The route's template, so that ids in paths do not become metric labels."""
    route = scope.get("route")
    return route.path if route is not None else "other"
