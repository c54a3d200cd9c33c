"""The release as of the newest change of its items: every replica reads the item log and swaps the release whole."""

import logging
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.core.errors import StoreError
from recsys_ray.index.live import Present
from recsys_ray.online.history import HistoryStore
from recsys_ray.online.item_log import Head, ItemChange, ItemLog
from recsys_ray.online.stores import SQLITE, open_histories, open_item_log
from recsys_ray.retrieval.live import compacted, num_uncompacted, with_changes
from recsys_ray.retrieval.live_channels import restricted
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
from recsys_ray.retrieval.release_parts import KIND
from serve_app.config import Live, ServeConfig

_READ_AT_ONCE = 500
_DEFAULT = "sqlite"
_PROMISED_S = 1.0
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stores:
    """The stores of live state that the settings name; None where there is none."""

    histories: HistoryStore | None
    items: ItemLog | None


def open_stores(live: Live, release: Path) -> Stores:
    """Open them.

    Args:
        live: The settings.
        release: The release's directory.

    Raises:
        StoreError: When a file cannot be opened or made.
        ConfigError: When `live.store` is no address.
    """
    if live.store is None:
        return Stores(None, None)
    address = live.store if live.store != _DEFAULT else f"{SQLITE}{default_path(release)}"
    try:
        return Stores(open_histories(address, live.max_history), open_item_log(address))
    except StoreError as error:
        raise StoreError(f"{error}; set live.store to sqlite:PATH of a file that can be written, or to null") from None


def default_path(release: Path) -> Path:
    """`live/live.sqlite` in the storage that the release lies in: it outlives the release."""
    folder = release.resolve().parent
    return (folder.parent if folder.name == KIND else folder) / "live" / "live.sqlite"


class LiveRelease:
    """A release, and a thread that keeps it level with the item log.

    Args:
        release: As published.
        log: None: nothing ever changes.
        live: The settings.
    """

    def __init__(self, release: Release, log: ItemLog | None, live: Live) -> None:
        self._published = release
        self._log = log
        self._live = live
        self._lock = threading.Lock()
        self._current = release
        self._at = Head("", 0)
        self._level_at = -float("inf")
        self._failing = False
        self._compaction = threading.Thread()
        self._since_compaction: list[ItemChange] | None = None
        self._present = Present(len(release.item_ids))
        if log is not None:
            self._try(self.catch_up)
            threading.Thread(
                target=_follow, args=(weakref.ref(self), live.poll_s), name="item-log", daemon=True
            ).start()

    @property
    def current(self) -> Release:
        """The release with all changes that were read so far. One answer reads it once."""
        return self._current

    @property
    def sequence(self) -> int:
        """Of the newest change in `current`."""
        return self._at.sequence

    @property
    def lag_s(self) -> float:
        """Seconds since this replica last made sure that it has all changes."""
        return 0.0 if self._log is None else time.monotonic() - self._level_at

    @property
    def is_stale(self) -> bool:
        """Whether it must not answer."""
        return self._live.max_lag_s is not None and self.lag_s > self._live.max_lag_s

    @property
    def is_late(self) -> bool:
        """Whether it may lack changes that it should have by what is promised."""
        return self.lag_s > _PROMISED_S

    def catch_up(self) -> None:
        """Apply all changes that are in the log now.

        Raises:
            StoreError: When the log cannot be read.
        """
        if self._log is None:
            return
        with self._lock:
            asked_at, head = time.monotonic(), self._log.head()
            if head.epoch != self._at.epoch or head.sequence < self._at.sequence:
                # Another log, or one that lost its end: what was read of the old one counts no more.
                self._current, self._at, self._since_compaction = self._published, Head(head.epoch, 0), None
            while self._at.sequence < head.sequence:
                changes = self._log.read(self._at.sequence, _READ_AT_ONCE)
                if not changes:
                    break
                self._current = with_changes(self._current, changes)
                self._at = Head(head.epoch, changes[-1].sequence)
                if self._since_compaction is not None:
                    self._since_compaction += changes
            self._level_at = asked_at

    def compact(self) -> None:
        """Build the indexes anew with all changes in them, while changes go on, and swap them in."""
        with self._lock:
            before = self._current
            since: list[ItemChange] = []
            self._since_compaction = since
        built = compacted(before)
        with self._lock:
            if self._since_compaction is since:
                self._current = with_changes(built, since)
                self._since_compaction = None

    def known(self, queries: Queries) -> Queries:
        """The questions without rows that this replica does not know yet; the one that asks may have read further."""
        return queries if self._current is not self._published else restricted(queries, self._present)

    def _step(self) -> None:
        """What is done again and again."""
        self._try(self.catch_up)
        if num_uncompacted(self._current) >= self._live.compact_at and not self._compaction.is_alive():
            self._compaction = threading.Thread(target=self._try, args=(self.compact,), name="compaction", daemon=True)
            self._compaction.start()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
            self._failing = False
        except StoreError as error:
            if not self._failing:  # once an outage, not ten times a second
                _log.warning("the item log cannot be read: %s", error)
            self._failing = True
        except Exception:
            # The thread must outlive whatever is wrong with one change; the lag it then has stops the answers.
            if not self._failing:
                _log.exception("changes of items could not be applied")
            self._failing = True


def _follow(held: "weakref.ref[LiveRelease]", poll_s: float) -> None:
    """Keep a release level for as long as somebody else holds it: one that was replaced is let go with its thread."""
    pause = threading.Event()
    while (live := held()) is not None:
        live._step()
        del live
        pause.wait(poll_s)


def open_live(config: ServeConfig, release: Release) -> LiveRelease:
    """Bring a release level with the item log; for a replica that holds a part of it.

    Raises:
        StoreError: As `open_stores`.
    """
    return LiveRelease(release, open_stores(config.live, release.artifact.path).items, config.live)
