"""Answers without HTTP: external ids in, plain documents out."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.explain import Source
from recsys_ray.retrieval.fusion import Fused
from recsys_ray.retrieval.release import Question, Recommended, Release
from serve_app import api
from serve_app.config import ServeConfig
from serve_app.engine import AllChannelsFailed, Deadline, DeadlinePassed, Engine, Trace
from serve_app.problems import Problem

_WARM_UP_S = 30.0


@dataclass(frozen=True)
class Ask:
    """What is known of a request besides its body.

    Attributes:
        request_id: Its id.
        arrived: When it came, in `time.perf_counter` seconds.
    """

    request_id: str
    arrived: float


class Service:
    """The questions that can be asked of one release.

    Args:
        release: Where ids, histories and catalogue fields are looked up.
        engine: What finds candidates.
        config: Topology and limits.
    """

    def __init__(self, release: Release, engine: Engine, config: ServeConfig) -> None:
        self._release = release
        self._engine = engine
        self._config = config

    @property
    def release_id(self) -> str:
        """Id of the release that is served."""
        return self._release.id

    async def recommend(self, body: api.RecommendRequest, ask: Ask) -> dict[str, Any]:
        """Items for a user, a history or a text.

        Raises:
            Problem: 404 unknown user, 408 deadline, 422 unknown field or wrong filter, 503 no channel answered.
        """
        question = self._question(
            body, history=body.history, user_id=body.user_id, text=body.text, exclude_seen=body.exclude_seen
        )
        if not question.known_user:
            raise Problem(404, f"This release has no user {body.user_id!r}; ask with a history instead.")
        document = await self._answer(question, body, ask)
        document["cold"] = not len(question.queries.history.values) and body.text is None
        document["unknown_items"] = list(question.unknown_items)
        return document

    async def similar(self, body: api.SimilarRequest, ask: Ask) -> dict[str, Any]:
        """Items like one item, which itself is left out.

        Raises:
            Problem: 404 unknown item, and as `recommend`.
        """
        self._row(body.item_id)
        question = self._release.evidence_only(self._question(body, history=[body.item_id]))
        if not question.channels:
            raise Problem(422, "No channel of this release reads a history, so none can say what is similar.")
        return await self._answer(question, body, ask)

    async def search(self, body: api.SearchRequest, ask: Ask) -> dict[str, Any]:
        """Items for a text.

        Raises:
            Problem: As `recommend`.
        """
        return await self._answer(self._question(body, text=body.text), body, ask)

    def item(self, item_id: str, ask: Ask) -> dict[str, Any]:
        """One item's catalogue fields.

        Raises:
            Problem: 404 unknown item.
        """
        row = self._row(item_id)
        fields = self._release.items.slice(row, 1).to_pylist()[0]
        described = {"item_id": item_id, "title": self._release.titles[row], "fields": _plain(fields)}
        return {**described, **self._envelope(ask, Trace())}

    def status(self, ask: Ask) -> dict[str, Any]:
        """What is being served."""
        release = self._release
        return {
            **self._envelope(ask, Trace()),
            "topology": self._config.topology,
            "channels": self._engine.channel_names,
            "spaces": [encoder.space_id for encoder in release.retriever.encoders],
            "fields": release.items.column_names,
            "counts": {"items": len(release.item_ids), "users": len(release.histories.user_ids)},
        }

    def alive(self, ask: Ask) -> dict[str, Any]:
        """That this process answers."""
        return {**self._envelope(ask, Trace()), "status": "alive"}

    async def ready(self, ask: Ask) -> dict[str, Any]:
        """That every stage has answered once; asks those that have not.

        Raises:
            Problem: 503, naming the stages that have not answered.
        """
        if self._engine.not_ready:
            await self._warm_up()
        missing = self._engine.not_ready
        if missing:
            raise Problem(503, f"Still waiting for: {', '.join(missing)}.", headers={"Retry-After": "1"})
        return {**self._envelope(ask, Trace()), "status": "ready"}

    async def _warm_up(self) -> None:
        """Ask every stage with a history and a text, so that what loads at first use is loaded."""
        question = self._release.question(self._release.item_ids.externals([0]), text="warm up")
        try:
            await self._candidates(question, 1, Deadline(_WARM_UP_S), Trace())
        except (DeadlinePassed, AllChannelsFailed):
            return  # the caller reports which stages are missing

    def _question(self, body: api.Request, **asked: Any) -> Question:
        try:
            question = self._release.question(**asked, filters=body.filters or None)
        except ConfigError as error:
            raise _wrong_value(error) from None
        if not question.channels:
            raise Problem(422, f"This release has no channel that answers a question by {', '.join(asked)}.")
        return question

    async def _answer(self, question: Question, body: api.Request, ask: Ask) -> dict[str, Any]:
        trace = Trace()
        timeout_s = (body.deadline_ms or self._config.limits.deadline_ms) / 1000
        deadline = Deadline(timeout_s - (time.perf_counter() - ask.arrived))
        try:
            fused = await self._candidates(question, body.k, deadline, trace)
        except DeadlinePassed:
            late = ", ".join(trace.late)
            raise Problem(408, f"No channel answered within {timeout_s * 1000:.0f} ms; late: {late}.") from None
        except AllChannelsFailed:
            retry = {"Retry-After": str(self._config.limits.retry_after_s)}
            raise Problem(503, f"Every channel failed: {', '.join(trace.failed)}.", headers=retry) from None
        return {"items": self._items(fused, body), **self._envelope(ask, trace)}

    async def _candidates(self, question: Question, k: int, deadline: Deadline, trace: Trace) -> Fused:
        return await self._engine.candidates(question, self._release.fusion_for(question), k, deadline, trace)

    def _items(self, fused: Fused, body: api.Request) -> list[dict[str, Any]]:
        try:
            found = self._release.answer(fused, fields=body.fields)
        except ConfigError as error:
            raise _wrong_value(error) from None
        items = [_item(one) for one in found]
        if body.explain:
            for item, sources in zip(items, self._release.explain(fused), strict=True):
                item["explain"] = {source.channel: _vote(source) for source in sources}
        return items

    def _envelope(self, ask: Ask, trace: Trace) -> dict[str, Any]:
        total_ms = round((time.perf_counter() - ask.arrived) * 1e3, 3)
        return {
            "release": self._release.id,
            "request_id": ask.request_id,
            "degraded": trace.degraded,
            "timings_ms": {**trace.timings_ms, "total": total_ms},
        }

    def _row(self, item_id: str) -> int:
        row = self._release.item_ids.row(item_id)
        if row < 0:
            raise Problem(404, f"This release has no item {item_id!r}.")
        return row


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
