"""Putting and deleting items: checked and encoded by the replica that is asked, then read from the log by all."""

import asyncio
from collections.abc import Callable
from typing import Concatenate, ParamSpec

from recsys_ray.core.errors import ConfigError, StoreError
from recsys_ray.online.item_log import ItemLog
from recsys_ray.retrieval.live import encode_body
from recsys_ray.retrieval.live_items import ItemBody, clean_id, decode_picture
from serve_app import api
from serve_app.histories import no_store, unavailable
from serve_app.live import LiveRelease
from serve_app.problems import Problem

P = ParamSpec("P")


class Items:
    """Changes of items.

    Args:
        live: The release as it is now, for encoding, and to see a change of its own at once.
        log: None: there is no live state, and changes are refused.
        retry_after_s: What a refused writer is told to wait.
    """

    def __init__(self, live: Callable[[], LiveRelease], log: ItemLog | None, retry_after_s: int) -> None:
        self._live = live
        self._log = log
        self._retry_after_s = retry_after_s

    async def put(self, item_id: str, body: api.ItemRequest) -> int:
        """Add an item or replace one; returns the sequence number of the change.

        Raises:
            Problem: 422 a field that does not fit, 503 not written.
        """
        return await self._in_thread(self._put, item_id, body)

    async def delete(self, item_id: str) -> int:
        """Delete an item; returns the sequence number of the change.

        Raises:
            Problem: 404 there is no such item, 503 not written.
        """
        return await self._in_thread(self._delete, item_id)

    def _put(self, log: ItemLog, item_id: str, body: api.ItemRequest) -> int:
        item_id = clean_id(item_id)
        picture = None if body.picture is None else decode_picture(body.picture)
        encoded = encode_body(self._live().current, item_id, ItemBody(body.fields, picture, (), {}))
        sequence = log.append(item_id, encoded.to_bytes())
        self._live().catch_up()
        return sequence

    def _delete(self, log: ItemLog, item_id: str) -> int:
        self._live().catch_up()  # it may have been put through another replica a moment ago
        if self._live().current.catalogue.row(item_id) < 0:
            raise Problem(404, f"There is no item {item_id!r}.")
        sequence = log.append(item_id, None)
        self._live().catch_up()
        return sequence

    async def _in_thread(
        self, change: Callable[Concatenate[ItemLog, P], int], *args: P.args, **kwargs: P.kwargs
    ) -> int:
        if self._log is None:
            raise no_store()
        try:
            return await asyncio.to_thread(change, self._log, *args, **kwargs)
        except ConfigError as error:
            raise Problem(422, str(error), [{"field": error.setting, "detail": str(error)}]) from None
        except StoreError as error:
            raise unavailable(error, self._retry_after_s) from error
