"""Histories of users by external ids: the protocol of live stores, and the histories that a release came with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_ray.core.arrays import BoolArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import ITEM_ID, KIND, TIMESTAMP, TOKENS, USER_ID
from recsys_ray.online.seen import Seen

HISTORIES_FILE = "histories.parquet"
FORMAT = 2  # 1 held neither times nor kinds
_FORMAT_KEY = b"recsys_ray.format"


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
class PastEvents:
    """Published events of B users, oldest first, 13 bytes an event.

    Attributes:
        offsets: (B + 1,) where each user's events begin.
        rows: (E,) int32 rows of the release's catalogue.
        times_us: (E,) microseconds since 1970; None where the release's events have no dates.
        kinds: (E,) places in `kind_names`, in the smallest type; None where the release's events have no kinds.
        kind_names: All kinds.
    """

    offsets: IntArray
    rows: npt.NDArray[np.int32]
    times_us: IntArray | None
    kinds: npt.NDArray[np.signedinteger[Any]] | None
    kind_names: tuple[str, ...]

    @property
    def items(self) -> Ragged:
        """(B) rows of the items."""
        return Ragged(self.rows.astype(np.int64), self.offsets)

    def take(self, users: IntArray) -> "PastEvents":
        """The events of some of the users, in the given order; none for a user that is -1."""
        known = users >= 0
        starts, lengths = np.zeros(len(users), np.int64), np.zeros(len(users), np.int64)
        starts[known] = self.offsets[users[known]]
        lengths[known] = self.offsets[users[known] + 1] - starts[known]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        times = None if self.times_us is None else self.times_us[places]
        kinds = None if self.kinds is None else self.kinds[places]
        return PastEvents(offsets, self.rows[places], times, kinds, self.kind_names)

    def fits(self, seen: Seen) -> BoolArray:
        """(E,) which of the events count as seen.

        Raises:
            ConfigError: When the events lack what is asked for.
        """
        fitting = np.ones(len(self.rows), np.bool_)
        if seen.since_us is not None:
            fitting &= _present("within_days", self.times_us, "dates") >= seen.since_us
        if seen.kinds is not None:
            wanted = np.array([name in seen.kinds for name in self.kind_names], np.bool_)
            fitting &= wanted[_present("kinds", self.kinds, "kinds")]
        return fitting


@dataclass(frozen=True)
class PublishedHistories:
    """The histories in a release: read-only, looked up by user id.

    Attributes:
        user_ids: The U users.
        item_ids: Ids and rows of the release's catalogue.
        events: Of all users.
        tokens_by_user: (U) attribute tokens.
    """

    user_ids: IdMap
    item_ids: IdMap
    events: PastEvents
    tokens_by_user: Ragged

    def of(self, user_id: str) -> PastEvents:
        """The user's events; none when the user is unknown."""
        return self.events.take(np.array([self.user_ids.row(user_id)], np.int64))

    def get(self, user_id: str) -> list[str]:
        """The user's item ids, oldest first; empty when the user is unknown."""
        return self.item_ids.externals(self.of(user_id).rows.tolist())

    def tokens(self, user_id: str) -> list[int]:
        """The user's attribute tokens; empty when the user is unknown."""
        row = self.user_ids.row(user_id)
        tokens: list[int] = self.tokens_by_user[row].tolist() if row >= 0 else []
        return tokens

    def __contains__(self, user_id: str) -> bool:
        return user_id in self.user_ids


def write_histories(
    path: Path,
    user_ids: Sequence[str],
    histories: Ragged,
    item_ids: IdMap,
    user_tokens: IntArray | None = None,
    *,
    times_us: IntArray | None = None,
    kinds: pa.Array | None = None,
) -> None:
    """Write the histories of a release.

    Args:
        path: The file.
        user_ids: (U,) external ids.
        histories: (U) item rows, oldest first.
        item_ids: External ids of the items.
        user_tokens: (U, T) attribute tokens, 0 where there is none.
        times_us: (E,) microseconds since 1970 of the events; None where they have no dates.
        kinds: (E,) text, the kind of each event; None where they have none.
    """
    tokens = Ragged.empty(len(user_ids))
    if user_tokens is not None:
        tokens = Ragged.of([row[row > 0] for row in user_tokens])
    columns = {
        USER_ID: pa.array(user_ids, pa.string()),
        ITEM_ID: _lists(histories.offsets, pa.array(item_ids.ids, pa.string()).take(pa.array(histories.values))),
        TOKENS: _lists(tokens.offsets, pa.array(tokens.values.astype(np.int32))),
    }
    if times_us is not None:
        columns[TIMESTAMP] = _lists(histories.offsets, pa.array(times_us, pa.int64()))
    if kinds is not None:
        columns[KIND] = _lists(histories.offsets, kinds.cast(pa.string()))
    table = pa.table(columns).replace_schema_metadata({_FORMAT_KEY: str(FORMAT)})
    pq.write_table(table, path)


def read_histories(path: Path, item_ids: IdMap) -> PublishedHistories:
    """Read what `write_histories` wrote.

    Args:
        path: The file.
        item_ids: Ids and rows of the release's catalogue.

    Raises:
        ArtifactError: When the file is missing, is not of that form, or names items that the catalogue does not have.
    """
    dictionaries = [f"{name}.list.element" for name in (ITEM_ID, KIND)]
    try:
        table = pq.read_table(path, read_dictionary=dictionaries)
        came = (table.schema.metadata or {}).get(_FORMAT_KEY, b"1").decode()
        if came != str(FORMAT):
            text = f"{path} has format {came}; this version reads format {FORMAT}: publish the release again"
            raise ArtifactError(text)
        offsets, items = _flat(table.column(ITEM_ID))
        events = PastEvents(
            offsets,
            _rows_of(items, item_ids, path),
            None if TIMESTAMP not in table.column_names else _flat(table.column(TIMESTAMP))[1].to_numpy(),
            *_kinds_of(table),
        )
        token_offsets, tokens = _flat(table.column(TOKENS))
        by_user = Ragged(tokens.to_numpy(zero_copy_only=False).astype(np.int64), token_offsets)
        return PublishedHistories(IdMap(table.column(USER_ID).to_pylist()), item_ids, events, by_user)
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"{path} cannot be read: {error}") from None


def _present(condition: str, column: Any, what: str) -> Any:
    if column is None:
        hint = f"The events that the release was published with have no {what}."
        raise ConfigError(f"exclude_seen.{condition}", "a condition", "true or false", hint)
    return column


def _lists(offsets: IntArray, values: pa.Array) -> pa.Array:
    return pa.LargeListArray.from_arrays(pa.array(offsets), values)


def _flat(column: pa.ChunkedArray) -> tuple[IntArray, pa.Array]:
    """A column of lists as offsets and one array of values, dictionaries made one."""
    lengths = np.asarray(pc.list_value_length(column).to_numpy(), np.int64)
    parts = [chunk.flatten() for chunk in column.chunks]
    values = pa.chunked_array(parts, column.type.value_type).unify_dictionaries().combine_chunks()
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), values


def _rows_of(items: pa.Array, item_ids: IdMap, path: Path) -> npt.NDArray[np.int32]:
    rows = item_ids.rows_of_column(items.dictionary)
    if (rows < 0).any():
        unknown = items.dictionary[int(np.argmin(rows))].as_py()
        raise ArtifactError(f"{path} names item {unknown!r}, which the catalogue of the release does not have")
    found: npt.NDArray[np.int32] = rows.astype(np.int32)[items.indices.to_numpy()]
    return found


def _kinds_of(table: pa.Table) -> tuple[npt.NDArray[np.signedinteger[Any]] | None, tuple[str, ...]]:
    if KIND not in table.column_names:
        return None, ()
    _, kinds = _flat(table.column(KIND))
    names = tuple(kinds.dictionary.to_pylist())
    return kinds.indices.to_numpy().astype(np.min_scalar_type(-len(names) - 1)), names
