"""What a user met, in rows of the catalogue, and what of it must not come back."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.online.history import LiveHistory, PublishedHistories
from recsys_ray.online.seen import ExcludeSeen, Seen
from recsys_ray.retrieval.catalogue import Catalogue

_NOTHING = np.zeros(0, np.int64)


@dataclass(frozen=True)
class Past:
    """One question's past.

    Attributes:
        history: Rows that were met, oldest first.
        exclude: Rows that must not come back.
        unknown_items: Ids that the catalogue does not know.
    """

    history: IntArray
    exclude: IntArray
    unknown_items: tuple[str, ...]


def past_of_items(item_ids: Sequence[str], catalogue: Catalogue, exclude_seen: ExcludeSeen) -> Past:
    """Of a question that brings its own history.

    Raises:
        ConfigError: When times or kinds are asked for, which such a history does not have.
    """
    if isinstance(exclude_seen, Seen):
        hint = "Only events of a user_id have a time and a kind."
        raise ConfigError("exclude_seen", "a condition on events", "true or false without a user_id", hint)
    rows, unknown = _known(item_ids, catalogue)
    history = rows[rows >= 0]
    return Past(history, history if exclude_seen else _NOTHING, unknown)


def past_of_user(
    user_id: str, histories: PublishedHistories, live: LiveHistory, catalogue: Catalogue, exclude_seen: ExcludeSeen
) -> Past:
    """Of a user: what the release holds, then what came since.

    A release that was made of the live events too holds the same items: each then stands at its live place only.

    Raises:
        ConfigError: When times or kinds are asked for, and the release's events have none.
    """
    row = -1 if live.erased else histories.user_ids.row(user_id)
    published = histories.events.take(np.array([row], np.int64))
    rows, unknown = _known([event.item_id for event in live.events], catalogue)
    recent = rows[rows >= 0]
    old = published.rows.astype(np.int64)
    history = np.concatenate([old[~np.isin(old, recent)], recent]) if len(recent) else old
    if not isinstance(exclude_seen, Seen):
        return Past(history, history if exclude_seen else _NOTHING, unknown)
    counted = np.array([_counts(event.timestamp_us, event.kind, exclude_seen) for event in live.events], np.bool_)
    exclude = np.concatenate([old[published.fits(exclude_seen)], rows[counted & (rows >= 0)]])
    return Past(history, exclude, unknown)


def _known(item_ids: Sequence[str], catalogue: Catalogue) -> tuple[IntArray, tuple[str, ...]]:
    rows = catalogue.history_rows(item_ids)
    return rows, tuple(item_ids[place] for place in np.flatnonzero(rows < 0).tolist())


def _counts(timestamp_us: int, kind: str, seen: Seen) -> bool:
    return (seen.since_us is None or timestamp_us >= seen.since_us) and (seen.kinds is None or kind in seen.kinds)
