"""Answers without HTTP: external ids in, plain documents out."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recsys_ray.core.arrays import Ragged
from recsys_ray.retrieval.fusion import Fused
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
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
            Problem: 404 unknown user, 408 deadline, 422 unknown field, 503 no channel answered.
        """
        history = self._history_of(body)
        rows = self._release.item_ids.rows(history)
        known = rows[rows >= 0]
        queries = Queries(Ragged.of([known]), Ragged.of([known if body.exclude_seen else known[:0]]), (body.text,))
        document = await self._answer(queries, body, ask)
        document["cold"] = len(known) == 0 and body.text is None
        document["unknown_items"] = [item for item, row in zip(history, rows, strict=True) if row < 0]
        return document

    async def similar(self, body: api.SimilarRequest, ask: Ask) -> dict[str, Any]:
        """Items like one item, which itself is left out.

        Raises:
            Problem: 404 unknown item, and as `recommend`.
        """
        return await self._answer(Queries.of_histories(Ragged.of([[self._row(body.item_id)]])), body, ask)

    async def search(self, body: api.SearchRequest, ask: Ask) -> dict[str, Any]:
        """Items for a text.

        Raises:
            Problem: As `recommend`.
        """
        return await self._answer(Queries.of_texts((body.text,)), body, ask)

    def item(self, item_id: str, ask: Ask) -> dict[str, Any]:
        """One item's catalogue fields.

        Raises:
            Problem: 404 unknown item.
        """
        item = self._release.describe([self._row(item_id)], self._release.shown_fields)[0]
        return {**item, **self._envelope(ask, Trace())}

    def status(self, ask: Ask) -> dict[str, Any]:
        """What is being served."""
        release = self._release
        return {
            **self._envelope(ask, Trace()),
            "topology": self._config.topology,
            "channels": self._engine.channel_names,
            "spaces": release.spaces,
            "fields": list(release.shown_fields),
            "counts": {"items": len(release.item_ids)},
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
        queries = Queries(Ragged.of([[0]]), Ragged.of([[0]]), ("",))
        try:
            await self._engine.candidates(queries, 1, Deadline(_WARM_UP_S), Trace())
        except (DeadlinePassed, AllChannelsFailed):
            return  # the caller reports which stages are missing

    async def _answer(self, queries: Queries, body: api.Request, ask: Ask) -> dict[str, Any]:
        fields = self._checked_fields(body.fields)
        queries = self._filtered(queries, body)
        trace = Trace()
        fused = await self._candidates(queries, body, ask, trace)
        document = {"items": self._items(fused, body, fields)}
        return {**document, **self._envelope(ask, trace)}

    async def _candidates(self, queries: Queries, body: api.Request, ask: Ask, trace: Trace) -> Fused:
        timeout_s = (body.deadline_ms or self._config.limits.deadline_ms) / 1000
        deadline = Deadline(timeout_s - (time.perf_counter() - ask.arrived))
        try:
            return await self._engine.candidates(queries, body.k, deadline, trace)
        except DeadlinePassed:
            late = ", ".join(trace.late)
            raise Problem(408, f"No channel answered within {timeout_s * 1000:.0f} ms; late: {late}.") from None
        except AllChannelsFailed:
            retry = {"Retry-After": str(self._config.limits.retry_after_s)}
            raise Problem(503, f"Every channel failed: {', '.join(trace.failed)}.", headers=retry) from None

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

    def _history_of(self, body: api.RecommendRequest) -> Sequence[str]:
        if body.user_id is None:
            return body.history or ()
        history = self._release.histories.get(body.user_id)
        if history is None:
            raise Problem(404, f"This release has no user {body.user_id!r}; give a history instead.")
        return history

    def _checked_fields(self, fields: Sequence[str]) -> list[str]:
        allowed = self._release.shown_fields
        unknown = [name for name in fields if name not in allowed]
        if unknown:
            detail = f"there is no field {unknown[0]!r}; the catalogue has: {', '.join(allowed)}"
            raise Problem(422, f"fields: {detail}.", [{"field": "fields", "detail": detail}])
        return list(fields)

    def _filtered(self, queries: Queries, body: api.Request) -> Queries:
        return queries

    def _items(self, fused: Fused, body: api.Request, fields: list[str]) -> list[dict[str, Any]]:
        rows = [int(row) for row in fused.candidates.rows[0] if row >= 0]
        items = self._release.describe(rows, fields)
        for place, item in enumerate(items):
            ranks = fused.sources(0, place)
            item["score"] = float(fused.candidates.scores[0, place])
            item["channels"] = list(ranks)
            if body.explain:
                item["explain"] = _votes(fused, place, ranks)
        return items


def _votes(fused: Fused, place: int, ranks: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """What each channel said of one item of the first query."""
    column = {name: index for index, name in enumerate(fused.channels)}
    return {
        name: {
            "rank": rank + 1,
            "score": float(fused.scores[0, place, column[name]]),
            "share": float(fused.shares[0, place, column[name]]),
        }
        for name, rank in ranks.items()
    }
