"""User-kNN: what the people met whose histories are most like the query's."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.events import Events
from recsys_ray.retrieval.candidates import Candidates, concatenate, top_k
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings, Search
from recsys_ray.retrieval.channels.table import SparseRows, Table, decayed, evidence
from recsys_ray.retrieval.query import Queries

AT_QUERY = frozenset({"decay", "history", "users"})
_POSTINGS, _HISTORIES = "postings", "histories"
_BLOCK = 512  # queries whose likeness to all users exists at once


class UserKnnConfig(ChannelSettings):
    """Cosine of weighted histories.

    An item that m people met counts 1 / m^item_exponent in a history. The query's history is read live, with decay; of
    the people in the log the `users` most alike add their items, each by its likeness, divided by m^target_exponent
    (Herlocker et al. 1999; Sarwar et al. 2000).

    Attributes:
        kind: Which channel this is.
        users: So many of the people most alike are asked.
        item_exponent: How much less items that many people met say of a person.
        target_exponent: How much less they are recommended.
        decay: What a step further back in the query's history counts, as a factor a step.
        history: The last so many items of the query's history are read.
        postings: Of the people who met an item, the latest so many can be found by it: a bound on the cost of a query.
    """

    kind: Literal["user_knn"] = "user_knn"
    users: int = Field(200, ge=1)
    item_exponent: float = Field(0.5, ge=0)
    target_exponent: float = Field(0.25, ge=0, le=1)
    decay: float = Field(0.9, gt=0, le=1)
    history: int = Field(200, ge=1)
    postings: int = Field(20_000, ge=1)
    search: Search = Field(
        default_factory=lambda: {
            "decay": (0.7, 0.8, 0.9, 1.0),
            "users": (50, 200, 800),
            "target_exponent": (0.0, 0.25, 0.5),
            "item_exponent": (0.25, 0.5),
        }
    )


@dataclass(frozen=True)
class UserKnnChannel:
    """Two tables, there and back.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        postings: (N, U) what an item of the query adds to the likeness of each person.
        histories: (U, N) what a person adds to each item.
    """

    name: str
    config: UserKnnConfig
    postings: Table
    histories: Table

    @property
    def reads(self) -> Reads:
        """The history."""
        return frozenset({"history"})

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        return evidence(queries, self.histories.scores(self._alike(queries)))

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        return self.histories.best(self._alike(queries), queries, k)

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config)
        for name, table in ((_POSTINGS, self.postings), (_HISTORIES, self.histories)):
            (directory / name).mkdir()
            table.save(directory / name)

    def _alike(self, queries: Queries) -> SparseRows:
        """The people most like each query, and how much."""
        steps = decayed(queries.history, self.config.decay, self.config.history)
        starts = range(0, len(queries), _BLOCK)
        blocks = [steps.slice(start, min(start + _BLOCK, len(queries))) for start in starts]
        parts = [self._most_alike(block) for block in blocks]
        found = concatenate(parts) if parts else Candidates.empty(0, self.config.users)
        listed = found.rows >= 0
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(listed.sum(1))])
        return SparseRows(Ragged(found.rows[listed], offsets), found.scores[listed])

    def _most_alike(self, steps: SparseRows) -> Candidates:
        likeness = self.postings.scores(steps)
        likeness[likeness <= 0] = -np.inf
        return top_k(likeness, self.config.users)


def fit(name: str, config: UserKnnConfig, data: FitData) -> UserKnnChannel:
    """Weigh and normalise the histories of the log."""
    met = data.events.matrix()
    popularity = np.maximum(np.asarray(met.sum(0)).ravel(), 1.0)
    weighted = met @ sp.diags(popularity**-config.item_exponent)
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    unit = sp.diags(1.0 / np.maximum(lengths, 1e-12)) @ weighted
    # The query's items are weighted as those of the log, so the weight stands in the postings once more.
    postings = sp.diags(popularity**-config.item_exponent) @ _latest(data.events, unit, config.postings).T
    histories = met @ sp.diags(popularity**-config.target_exponent)
    return UserKnnChannel(name, config, Table.of(postings), Table.of(histories))


def load(directory: Path) -> UserKnnChannel:
    """Read what `save` wrote."""
    header = read_header(directory)
    tables = (Table.load(directory / name) for name in (_POSTINGS, _HISTORIES))
    return UserKnnChannel(header.name, UserKnnConfig.parse(header.config), *tables)


def _latest(events: Events, unit: sp.csr_matrix, postings: int) -> sp.csr_matrix:
    """(U, N) with at most `postings` people an item: those who met it last, by the time of the event."""
    if not len(events) or int(events.item_counts().max()) <= postings:
        return unit
    users, items = events.users, events.items
    order = np.lexsort((-users, -events.timestamps, items))
    sorted_items = items[order]
    first = np.concatenate([np.zeros(1, np.int64), np.flatnonzero(np.diff(sorted_items)) + 1])
    place = np.arange(len(order)) - np.repeat(first, np.diff(np.append(first, len(order))))
    kept = order[place < postings]
    mask = sp.csr_matrix((np.ones(len(kept), np.float32), (users[kept], items[kept])), unit.shape)
    mask.data[:] = 1.0
    return unit.multiply(mask).tocsr()
