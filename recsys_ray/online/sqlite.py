"""Live state in SQLite: the embedded default, for all processes of one node.

In WAL mode readers never wait for a writer, and a commit is seen by the next read of every process. Each commit is
synced, so neither a killed process nor a power failure loses what was answered with success.
"""

import sqlite3
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from recsys_ray.core.errors import StoreError
from recsys_ray.online.history import Event, LiveHistory
from recsys_ray.online.item_log import Head, ItemChange

_BUSY_TIMEOUT_S = 2.0

_HISTORIES = """
CREATE TABLE IF NOT EXISTS events (
    user_id TEXT, timestamp_us INTEGER, item_id TEXT, kind TEXT,
    PRIMARY KEY (user_id, timestamp_us, item_id, kind)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erased (user_id TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_ITEMS = """
CREATE TABLE IF NOT EXISTS items (
    item_id TEXT PRIMARY KEY, slot INTEGER NOT NULL UNIQUE, sequence INTEGER NOT NULL UNIQUE, body BLOB
);
CREATE TABLE IF NOT EXISTS log (only INTEGER PRIMARY KEY CHECK (only = 0), epoch TEXT NOT NULL);
"""


class Database:
    """One file, opened once a thread.

    Args:
        path: The file; it and its folder are made where they are not there.
        tables: Statements that make the tables.

    Raises:
        StoreError: When it cannot be opened or is no such database.
    """

    def __init__(self, path: Path, tables: str) -> None:
        self._path = path
        self._local = threading.local()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{path.parent} cannot be made: {error}") from None
        with self.transaction() as connection:
            for statement in filter(str.strip, tables.split(";")):
                connection.execute(statement)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection."""
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """This thread's connection, with all that is done in the block committed together, or not at all."""
        with self.reading() as connection:
            # IMMEDIATE takes the write lock at once: transactions follow each other, and so do their numbers.
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self._path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
        return connection


class SqliteHistories:
    """See `HistoryStore`.

    Args:
        path: The file.
        max_events: The newest so many events of a user are kept.

    Raises:
        StoreError: When the file cannot be opened.
    """

    def __init__(self, path: Path, max_events: int) -> None:
        self._database = Database(path, _HISTORIES)
        self._max_events = max_events

    def append(self, events: Sequence[tuple[str, Event]]) -> None:
        """See `HistoryStore.append`."""
        rows = [(user, event.timestamp_us, event.item_id, event.kind) for user, event in events]
        users = {user: (user, user, self._max_events) for user, _ in events}
        with self._database.transaction() as connection:
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", rows)
            connection.executemany(
                "DELETE FROM events WHERE user_id = ? AND (timestamp_us, item_id, kind) IN ("
                "SELECT timestamp_us, item_id, kind FROM events WHERE user_id = ? "
                "ORDER BY timestamp_us DESC, item_id DESC, kind DESC LIMIT -1 OFFSET ?)",
                users.values(),
            )

    def get(self, user_id: str) -> LiveHistory:
        """See `HistoryStore.get`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT timestamp_us, item_id, kind FROM events WHERE user_id = ? ORDER BY timestamp_us, item_id, kind",
                (user_id,),
            ).fetchall()
            erased = connection.execute("SELECT 1 FROM erased WHERE user_id = ?", (user_id,)).fetchone()
        return LiveHistory(tuple(map(Event._make, rows)), erased is not None)

    def erase(self, user_id: str) -> None:
        """See `HistoryStore.erase`."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM events WHERE user_id = ?", (user_id,))
            connection.execute("INSERT OR IGNORE INTO erased VALUES (?)", (user_id,))


class SqliteItemLog:
    """See `ItemLog`.

    Args:
        path: The file; histories may lie in the same one.

    Raises:
        StoreError: When the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self._database = Database(path, _ITEMS)
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO log VALUES (0, ?)", (uuid.uuid4().hex,))

    def append(self, item_id: str, body: bytes | None) -> int:
        """See `ItemLog.append`."""
        with self._database.transaction() as connection:
            sequence, slot = connection.execute(
                "SELECT coalesce(max(sequence), 0) + 1, coalesce(max(slot), -1) + 1 FROM items"
            ).fetchone()
            connection.execute(
                "INSERT INTO items VALUES (?, ?, ?, ?) "
                "ON CONFLICT (item_id) DO UPDATE SET sequence = excluded.sequence, body = excluded.body",
                (item_id, slot, sequence, body),
            )
        return int(sequence)

    def head(self) -> Head:
        """See `ItemLog.head`."""
        with self._database.reading() as connection:
            row = connection.execute("SELECT epoch, (SELECT max(sequence) FROM items) FROM log").fetchone()
        if row is None:
            raise StoreError("the item log was emptied while it was in use: start the application anew")
        return Head(row[0], row[1] or 0)

    def read(self, after: int, limit: int) -> list[ItemChange]:
        """See `ItemLog.read`."""
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT sequence, slot, item_id, body FROM items WHERE sequence > ? ORDER BY sequence LIMIT ?",
                (after, limit),
            ).fetchall()
        return [ItemChange(*row) for row in rows]
