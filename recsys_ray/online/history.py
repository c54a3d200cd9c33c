"""Histories of users by external ids: the protocol of live stores, and the histories that a release came with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import ITEM_ID, TOKENS, USER_ID

HISTORIES_FILE = "histories.parquet"
_SCHEMA = pa.schema([(USER_ID, pa.string()), (ITEM_ID, pa.list_(pa.string())), (TOKENS, pa.list_(pa.int32()))])


class Event(NamedTuple):  # an answer reads up to a thousand of them, and tuples are made fastest
    """One live interaction of a user. The order of a history is that of these fields.

    Attributes:
        timestamp_us: Microseconds since 1970.
        item_id: External id.
        kind: View, click, purchase, …
    """

    timestamp_us: int
    item_id: str
    kind: str


@dataclass(frozen=True)
class LiveHistory:
    """What a live store knows of one user.

    Attributes:
        events: Oldest first.
        erased: The user was erased: what a release still holds of the user must not be read.
    """

    events: tuple[Event, ...] = ()
    erased: bool = False

    def after(self, published: Sequence[str]) -> list[str]:
        """The user's item ids, oldest first: those of a release, then the live ones.

        A release that was made of these events too holds the same items: each then stands at its live place only.
        """
        live = [event.item_id for event in self.events]
        again = set(live)
        return live if self.erased else [*(item for item in published if item not in again), *live]


class HistoryStore(Protocol):
    """Live histories. Stores keep external ids, never rows: rows change with every release.

    Laws, checked by one contract test: what `append` returned from is seen by every process, also after a crash; an
    event that comes twice counts once; a user keeps the newest `max_events` events; erasing leaves no event behind.
    All methods raise `StoreError` when the store cannot be reached.
    """

    def append(self, events: Sequence[tuple[str, Event]]) -> None:
        """Add events, each with its user's id: all of them or none."""
        ...

    def get(self, user_id: str) -> LiveHistory:
        """What is known of the user; empty when the user is unknown."""
        ...

    def erase(self, user_id: str) -> None:
        """Delete the user's events, and remember that the release's history of the user must not be read."""
        ...


@dataclass(frozen=True)
class PublishedHistories:
    """The histories in a release: read-only, in Arrow memory, looked up by user id.

    Attributes:
        user_ids: The users.
        table: One row a user, see `write_histories`.
    """

    user_ids: IdMap
    table: pa.Table

    def get(self, user_id: str) -> list[str]:
        """The user's item ids, oldest first; empty when the user is unknown."""
        row = self.user_ids.row(user_id)
        items: list[str] = self.table.column(ITEM_ID)[row].as_py() if row >= 0 else []
        return items

    def tokens(self, user_id: str) -> list[int]:
        """The user's attribute tokens; empty when the user is unknown."""
        row = self.user_ids.row(user_id)
        tokens: list[int] = self.table.column(TOKENS)[row].as_py() if row >= 0 else []
        return tokens

    def __contains__(self, user_id: str) -> bool:
        return user_id in self.user_ids


def write_histories(
    path: Path, user_ids: Sequence[str], histories: Ragged, item_ids: IdMap, user_tokens: IntArray | None = None
) -> None:
    """Write the histories of a release.

    Args:
        path: The file.
        user_ids: (U,) external ids.
        histories: (U) item rows, oldest first.
        item_ids: External ids of the items.
        user_tokens: (U, T) attribute tokens, 0 where there is none.
    """
    items = pa.array(item_ids.ids, pa.string()).take(pa.array(histories.values))
    offsets = pa.array(histories.offsets.astype(np.int32))
    tokens = (
        Ragged.of([row[row > 0] for row in user_tokens]) if user_tokens is not None else Ragged.empty(len(user_ids))
    )
    columns = [
        pa.array(user_ids, pa.string()),
        pa.ListArray.from_arrays(offsets, items),
        pa.ListArray.from_arrays(tokens.offsets.astype(np.int32), pa.array(tokens.values.astype(np.int32))),
    ]
    pq.write_table(pa.table(columns, schema=_SCHEMA), path)


def read_histories(path: Path) -> PublishedHistories:
    """Read what `write_histories` wrote.

    Raises:
        ArtifactError: When the file is missing or is not of that form.
    """
    try:
        table = pq.read_table(path, schema=_SCHEMA).combine_chunks()
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None
    return PublishedHistories(IdMap(table.column(USER_ID).to_pylist()), table)
