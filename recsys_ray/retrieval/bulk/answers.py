"""The answers of a release to many users at once; those of `Release.recommend`, user by user."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.schema import ITEM_ID, USER_ID
from recsys_ray.index.subset import Allowed
from recsys_ray.online.seen import ExcludeSeen, Seen
from recsys_ray.retrieval.filters import Filter
from recsys_ray.retrieval.fusion import Fused
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Question, Release

RANK, SCORE, SOURCES = "rank", "score", "channels"
SCHEMA = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (RANK, pa.int32()),  # from 1
        (SCORE, pa.float32()),  # comparable within one user only
        (SOURCES, pa.map_(pa.string(), pa.int32())),  # channel to its own rank, from 1, the best first
    ]
)
_BATCH = 256


@dataclass(frozen=True)
class Asked:
    """What is asked for each user; see `Release.recommend`.

    Attributes:
        k: How many candidates.
        exclude_seen: What is left out.
        filters: What may come back.
    """

    k: int = 20
    exclude_seen: ExcludeSeen = True
    filters: Filter | None = None


@dataclass(frozen=True)
class Answers:
    """A release that is asked the same for many users.

    Attributes:
        release: As published.
        asked: What is asked.
    """

    release: Release
    asked: Asked

    def tables(self, user_ids: Sequence[str]) -> Iterator[pa.Table]:
        """The candidates of the users in their order, as tables of `SCHEMA` of some hundred users each."""
        for start in range(0, len(user_ids), _BATCH):
            yield self._table(user_ids[start : start + _BATCH])

    def _table(self, user_ids: Sequence[str]) -> pa.Table:
        queries = self._queries(user_ids)
        known = queries.history.lengths > 0
        users, parts = [], []
        # Users with and without a history are asked of other fusions, and so apart.
        for places in (np.flatnonzero(known), np.flatnonzero(~known)):
            if len(places):
                question = Question(queries.take(places), tuple(self.release.retriever.channels))
                user, part = _rows(self.release.ask(question, self.asked.k), self._item_ids)
                users.append(places[user])
                parts.append(part)
        owner = np.concatenate(users)
        order = pa.array(np.argsort(owner, kind="stable"))
        names = pa.array(user_ids, pa.string()).take(pa.array(owner))
        return pa.concat_tables(parts).add_column(0, USER_ID, names).take(order).cast(SCHEMA)

    def _queries(self, user_ids: Sequence[str]) -> Queries:
        histories, seen = self.release.histories, self.asked.exclude_seen
        users = histories.user_ids.rows(user_ids)
        events = histories.events.take(users)
        history = exclude = events.items
        if isinstance(seen, Seen):
            exclude = history.where(events.fits(seen))
        elif not seen:
            exclude = Ragged.empty(len(users))
        tokens = _tokens(histories.tokens_by_user, users)
        allowed = None if self._allowed is None else self._allowed.take(np.zeros(len(users), np.int64))
        return Queries(history, exclude, (None,) * len(users), tokens, allowed=allowed)

    @cached_property
    def _allowed(self) -> Allowed | None:
        return None if self.asked.filters is None else self.release.catalogue.allowed(self.asked.filters)

    @cached_property
    def _item_ids(self) -> pa.Array:
        return pa.array(self.release.item_ids.ids, pa.string())


def _rows(fused: Fused, item_ids: pa.Array) -> tuple[IntArray, pa.Table]:
    """The place of each candidate's user, and the columns of `SCHEMA` without the user."""
    user, place = np.nonzero(fused.candidates.rows >= 0)
    offsets, channels, ranks = _sources(fused.ranks[user, place])
    names = pa.array(fused.channels, pa.string()).take(pa.array(channels))
    columns = {
        ITEM_ID: item_ids.take(pa.array(fused.candidates.rows[user, place])),
        RANK: pa.array((place + 1).astype(np.int32)),
        SCORE: pa.array(fused.candidates.scores[user, place]),
        SOURCES: pa.MapArray.from_arrays(pa.array(offsets), names, pa.array(ranks)),
    }
    return user, pa.table(columns)


def _sources(ranks: IntArray) -> tuple[npt.NDArray[np.int32], IntArray, npt.NDArray[np.int32]]:
    """(R, C) ranks from 0, -1 where a channel has none, as lists: offsets, channels and ranks from 1, best first."""
    order = np.argsort(np.where(ranks < 0, np.iinfo(np.int64).max, ranks), axis=1, kind="stable")
    sorted_ranks = np.take_along_axis(ranks, order, 1)
    there = sorted_ranks >= 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(there.sum(1))]).astype(np.int32)
    return offsets, order[there], (sorted_ranks[there] + 1).astype(np.int32)


def _tokens(by_user: Ragged, users: IntArray) -> IntArray | None:
    """(B, T) attribute tokens, padded on the right with 0; None where no user has any."""
    known = np.flatnonzero(users >= 0)
    found = by_user.take(users[known])
    if not len(found.values):
        return None
    tokens = np.zeros((len(users), int(found.lengths.max())), np.int64)
    column = np.arange(len(found.values)) - np.repeat(found.offsets[:-1], found.lengths)
    tokens[known[found.row_of_value], column] = found.values
    return tokens
