"""Answers without HTTP: external ids in, plain documents out."""

import math
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.core.errors import ConfigError
from recsys_ray.core.validate import BAD_TIMESTAMP, parse_timestamps
from recsys_ray.online.history import Event
from recsys_ray.retrieval.explain import Source
from recsys_ray.retrieval.fusion import Fused
from recsys_ray.retrieval.release import Question, Recommended, Release
from recsys_ray.retrieval.text_backends import choose, fidelity
from serve_app import api
from serve_app.circuit import Circuit
from serve_app.config import ServeConfig
from serve_app.deadline import Deadline
from serve_app.engine import AllChannelsFailed, DeadlinePassed, Trace
from serve_app.histories import HISTORIES, Histories
from serve_app.live import LiveRelease
from serve_app.live_recall import LiveRecall
from serve_app.metrics import Metrics
from serve_app.problems import Problem
from serve_app.serving import NotWarm, Serving
from serve_app.swap import Swap

_WARM_UP_S = 30.0
ITEMS = "items"
_LONGEST_S = 1e9  # JSON has no infinity, which a replica that never read the log is behind


@dataclass(frozen=True)
class Ask:
    """What is known of a request besides its body.

    Attributes:
        request_id: Its id.
        arrived: When it came, in `time.perf_counter` seconds.
        serving: The release that its answer is made from.
        deadline_ms: The deadline that its headers set, for a body that sets none.
    """

    request_id: str
    arrived: float
    serving: Serving
    deadline_ms: int | None = None


class Service:
    """The questions that can be asked of a release.

    Args:
        swap: The release that answers; each answer is made from the one that was current when the request came.
        histories: What came of users since the release.
        recall: Is shown what the engine answers; see `Engine`.
        config: Topology and limits.
    """

    def __init__(self, swap: Swap, histories: Histories, recall: LiveRecall, config: ServeConfig) -> None:
        self._swap = swap
        self._histories = histories
        self._recall = recall
        self._config = config

    def current(self) -> Serving:
        """What answers now."""
        return self._swap.current

    def watch(self, metrics: Metrics) -> None:
        """Show how this replica stands with changes of items and of releases, its circuits, and its recall."""
        self._recall.start(metrics)
        metrics.watch("recsys_item_log_sequence", lambda: self._live.sequence)
        metrics.watch("recsys_item_log_lag_seconds", lambda: min(self._live.lag_s, _LONGEST_S))
        metrics.watch("recsys_release_swaps", lambda: self._swap.following.swaps)
        metrics.watch("recsys_release_refused", lambda: float(self._swap.following.refused is not None))
        metrics.watch_each(
            "recsys_circuit_open",
            ("stage",),
            lambda: {(stage,): float(one.state != "closed") for stage, one in self._circuits(self.current()).items()},
        )

    async def recommend(self, body: api.RecommendRequest, ask: Ask) -> dict[str, Any]:
        """Items for a user, a history or a text.

        Raises:
            Problem: 404 unknown user, 408 deadline, 422 unknown field or wrong filter, 503 no channel answered.
        """
        trace = Trace()
        user_id = body.user_id
        known = None if user_id is None else await self._histories.of(user_id, self._deadline(body, ask), trace)
        question = self._question(
            body, ask, history=body.history, user_id=user_id, text=body.text, exclude_seen=body.exclusion(), live=known
        )
        # Whom the release does not know the histories may, when they can be read.
        if not question.known_user and not trace.degraded:
            raise Problem(404, f"Nothing is known of user {user_id!r}; ask with a history instead.")
        document = await self._answer(question, body, ask, trace)
        document["cold"] = not len(question.queries.history.values) and body.text is None
        document["unknown_items"] = list(question.unknown_items)
        return document

    async def similar(self, body: api.SimilarRequest, ask: Ask) -> dict[str, Any]:
        """Items like one item, which itself is left out.

        Raises:
            Problem: 404 unknown item, and as `recommend`.
        """
        release = self._release(ask)
        self._row(release, body.item_id)
        question = release.evidence_only(self._question(body, ask, history=[body.item_id]))
        if not question.channels:
            raise Problem(422, "No channel of this release reads a history, so none can say what is similar.")
        return await self._answer(question, body, ask, Trace())

    async def search(self, body: api.SearchRequest, ask: Ask) -> dict[str, Any]:
        """Items for a text.

        Raises:
            Problem: As `recommend`.
        """
        return await self._answer(self._question(body, ask, text=body.text), body, ask, Trace())

    async def record(self, body: api.EventsRequest, ask: Ask) -> dict[str, Any]:
        """Write events into the users' histories; the next answer reads them. What was only shown is left out.

        Raises:
            Problem: 422 a timestamp that is none, 503 not written.
        """
        release = ask.serving.live.current
        pairs = list(zip((one.user_id for one in body.events), events_of(body), strict=True))
        written = [(user_id, event) for user_id, event in pairs if event.kind not in release.exposures]
        await self._histories.append(written)
        ids = dict.fromkeys(event.item_id for _, event in written)
        unknown = [item_id for item_id in ids if release.catalogue.row(item_id) < 0]
        counts = {"accepted": len(written), "exposures": len(pairs) - len(written)}
        return {**counts, "unknown_items": unknown, **self.envelope(ask, Trace())}

    async def erase(self, user_id: str, ask: Ask) -> dict[str, Any]:
        """Forget a user: events are deleted, and what the release holds of the user is not read any more.

        Raises:
            Problem: 503 not written.
        """
        await self._histories.erase(user_id)
        return {"user_id": user_id, **self.envelope(ask, Trace())}

    def changed(self, item_id: str, sequence: int, ask: Ask) -> dict[str, Any]:
        """That an item was put or deleted."""
        return {"item_id": item_id, "sequence": sequence, **self.envelope(ask, Trace())}

    def item(self, item_id: str, ask: Ask) -> dict[str, Any]:
        """One item's catalogue fields.

        Raises:
            Problem: 404 unknown item, 503 this replica is behind.
        """
        release = self._release(ask)
        row = self._row(release, item_id)
        fields = release.catalogue.shown(np.array([row]), release.items.column_names)[0]
        described = {"item_id": item_id, "title": release.catalogue.title(row), "fields": _plain(fields)}
        return {**described, **self.envelope(ask, Trace())}

    def status(self, ask: Ask) -> dict[str, Any]:
        """What is being served."""
        live, engine = ask.serving.live, ask.serving.engine
        release = live.current
        return {
            **self.envelope(ask, Trace()),
            "topology": self._config.topology,
            "channels": engine.channel_names,
            "fallback": engine.fallback_name,
            "circuits": {stage: circuit.state for stage, circuit in self._circuits(ask.serving).items()},
            "spaces": [encoder.space_id for encoder in release.retriever.encoders],
            "fields": release.items.column_names,
            "counts": {"items": len(release.catalogue), "users": len(release.histories.user_ids)},
            "text_encoder": self._text_encoder(release),
            "live": {
                "replica": f"{socket.gethostname()}:{os.getpid()}",
                "sequence": live.sequence,
                "lag_s": min(round(live.lag_s, 3), _LONGEST_S),
                "max_lag_s": self._config.live.max_lag_s,
            },
            "recall": self._recall.status(),
            "following": asdict(self._swap.following),
        }

    def _text_encoder(self, release: Release) -> dict[str, Any]:
        config = self._config.text_encoder
        backend = choose(release.artifact, config)
        measured = {str(name): ms for name, ms in config.measured_ms.items()}
        return {"backend": backend, "measured_ms": measured, "fidelity": fidelity(release.artifact, backend)}

    def alive(self, ask: Ask) -> dict[str, Any]:
        """That this process answers."""
        return {**self.envelope(ask, Trace()), "status": "alive"}

    async def ready(self, ask: Ask) -> dict[str, Any]:
        """That every stage has answered once; asks those that have not.

        Raises:
            Problem: 503, naming the stages that have not answered, or how far this replica is behind.
        """
        self._require_level(ask)
        if ask.serving.engine.not_ready:
            try:
                await ask.serving.warm_up(_WARM_UP_S)
            except NotWarm as missing:
                raise Problem(503, str(missing), headers={"Retry-After": "1"}) from None
        return {**self.envelope(ask, Trace()), "status": "ready"}

    @property
    def _live(self) -> LiveRelease:
        return self.current().live

    def _circuits(self, serving: Serving) -> dict[str, Circuit]:
        return {**serving.engine.circuits, HISTORIES: self._histories.circuit}

    def _question(self, body: api.Request, ask: Ask, **asked: Any) -> Question:
        release = self._release(ask)
        try:
            question = release.question(**asked, filters=None if body.filters is None else body.filters.plain())
        except ConfigError as error:
            raise _wrong_value(error) from None
        if not question.channels:
            raise Problem(422, f"This release has no channel that answers a question by {', '.join(asked)}.")
        return question

    def _release(self, ask: Ask) -> Release:
        """The release that this answer is made from, as of now; stale data is not answered from.

        Raises:
            Problem: 503 this replica is behind.
        """
        self._require_level(ask)
        return ask.serving.live.current

    def _require_level(self, ask: Ask) -> None:
        if ask.serving.live.is_stale:
            bound = f"{self._config.live.max_lag_s} s (live.max_lag_s)"
            detail = f"This replica could not read the item log for longer than {bound}: it may be out of date."
            raise Problem(503, detail, headers={"Retry-After": str(self._config.limits.retry_after_s)})

    def _deadline(self, body: api.Request, ask: Ask) -> Deadline:
        """When the answer is due.

        Raises:
            Problem: 408 that is over already, so nobody waits for the work any more.
        """
        timeout_ms = self._timeout_ms(body, ask)
        deadline = Deadline(timeout_ms / 1e3 - (time.perf_counter() - ask.arrived))
        if deadline.remaining_s <= 0:
            raise Problem(408, f"The deadline of {timeout_ms} ms had passed before the work began.")
        return deadline

    def _timeout_ms(self, body: api.Request, ask: Ask) -> int:
        return body.deadline_ms or ask.deadline_ms or self._config.limits.deadline_ms

    async def _answer(self, question: Question, body: api.Request, ask: Ask, trace: Trace) -> dict[str, Any]:
        try:
            fused = await ask.serving.candidates(question, body.k, self._deadline(body, ask), trace)
        except DeadlinePassed:
            late = ", ".join(trace.late)
            detail = f"No channel answered within {self._timeout_ms(body, ask)} ms; late: {late}."
            raise Problem(408, detail) from None
        except AllChannelsFailed:
            retry = {"Retry-After": str(self._config.limits.retry_after_s)}
            raise Problem(503, f"Every channel failed: {', '.join(trace.failed)}.", headers=retry) from None
        return {"items": self._items(fused, body, ask), **self.envelope(ask, trace)}

    def _items(self, fused: Fused, body: api.Request, ask: Ask) -> list[dict[str, Any]]:
        release = ask.serving.live.current
        try:
            found = release.answer(fused, fields=body.fields)
        except ConfigError as error:
            raise _wrong_value(error) from None
        items = [_item(one) for one in found]
        if body.explain:
            for item, sources in zip(items, release.explain(fused), strict=True):
                item["explain"] = {source.channel: _vote(source) for source in sources}
        return items

    def envelope(self, ask: Ask, trace: Trace) -> dict[str, Any]:
        """What every answer carries."""
        total_ms = round((time.perf_counter() - ask.arrived) * 1e3, 3)
        return {
            "release": ask.serving.id,
            "request_id": ask.request_id,
            "degraded": [*trace.degraded, ITEMS] if ask.serving.live.is_late else trace.degraded,
            "timings_ms": {**trace.timings_ms, "total": total_ms},
        }

    def _row(self, release: Release, item_id: str) -> int:
        row = release.catalogue.row(item_id)
        if row < 0:
            raise Problem(404, f"There is no item {item_id!r}.")
        return row


def events_of(body: api.EventsRequest) -> list[Event]:
    """The events with their times; those that bring none get the present one, in the order they came.

    Raises:
        Problem: 422 naming the timestamps that are none.
    """
    now_us = time.time_ns() // 1000
    times: list[int] = []
    wrong = []
    for place, event in enumerate(body.events):
        try:
            times.append(now_us + place if event.timestamp is None else _microseconds(event.timestamp))
        except ValueError as error:
            wrong.append({"field": f"events.{place}.timestamp", "detail": str(error)})
    if wrong:
        raise Problem(422, f"{wrong[0]['field']}: {wrong[0]['detail']}.", wrong)
    return [Event(time_us, event.item_id, event.kind) for time_us, event in zip(times, body.events, strict=True)]


def _microseconds(timestamp: float | str) -> int:
    """Microseconds since 1970, by the rules of prepare; ValueError with the reason where it is no time."""
    try:
        times, problems = parse_timestamps(pa.chunked_array([[timestamp]]), "s")
    except (OverflowError, pa.ArrowInvalid):
        raise ValueError(BAD_TIMESTAMP) from None
    reasons = [reason for reason, mask in problems.items() if mask.any()]
    if reasons:
        raise ValueError(reasons[0])
    return int(times[0])


def _item(found: Recommended) -> dict[str, Any]:
    item: dict[str, Any] = {
        "item_id": found.item_id,
        "title": found.title,
        "score": found.score,
        "channels": found.channels,
    }
    if found.fields:
        item["fields"] = _plain(found.fields)
    return item


def _vote(source: Source) -> dict[str, float]:
    return {"rank": source.rank, "score": source.score, "share": source.share}


def _wrong_value(error: ConfigError) -> Problem:
    return Problem(422, str(error), [{"field": error.setting, "detail": str(error)}])


def _plain(value: Any) -> Any:
    """A catalogue value as JSON has it: no NaN, dates and the like as text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
