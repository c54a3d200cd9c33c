"""Co-visitation: what people met soon after the items of the history. Directed and weighted by the gap between them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.config import Config
from recsys_ray.core.events import Events
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.table import SparseRows, Table, decayed, evidence, prune
from recsys_ray.retrieval.query import Queries


class CoVisitationConfig(Config):
    """Directed co-occurrence counts as an item-to-item table.

    Attributes:
        kind: Which channel this is.
        window: Pairs of events of one user that lie at most this many steps apart are counted.
        gap_exponent: A pair that lies g steps apart counts 1 / g to this power.
        transpose: Share of the opposite direction that is added: 0 keeps order strict, 1 forgets it.
        source_exponent: The count is divided by the users of the item in the history to this power.
        target_exponent: And by the users of the item it leads to, to this power; both 0.5 is the cosine.
        decay: What a step further back in the history counts, as a factor a step.
        history: The last so many items of a history are read.
        neighbours: Keep only this many of the best entries of each item; None keeps all.
    """

    kind: Literal["co_visitation"] = "co_visitation"
    window: int = Field(10, ge=1, le=1000)
    gap_exponent: float = Field(1.0, ge=0)
    transpose: float = Field(0.3, ge=0, le=1)
    source_exponent: float = Field(0.5, ge=0, le=1)
    target_exponent: float = Field(0.5, ge=0, le=1)
    decay: float = Field(0.6, gt=0, le=1)
    history: int = Field(200, ge=1)
    neighbours: int | None = Field(None, ge=1)


@dataclass(frozen=True)
class CoVisitationChannel:
    """A fitted table: row i holds what item i leads to."""

    name: str
    config: CoVisitationConfig
    table: Table

    @property
    def reads(self) -> Reads:
        """The history."""
        return frozenset({"history"})

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        return evidence(queries, self.table.scores(self._steps(queries)))

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        return self.table.best(self._steps(queries), queries, k)

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config)
        self.table.save(directory)

    def _steps(self, queries: Queries) -> SparseRows:
        return decayed(queries.history, self.config.decay, self.config.history)


def fit(name: str, config: CoVisitationConfig, data: FitData) -> CoVisitationChannel:
    """Count the pairs and normalise them."""
    counts = count_pairs(data.events, config.window, config.gap_exponent)
    table = counts + config.transpose * counts.T if config.transpose else counts
    users = np.maximum(np.asarray(data.events.matrix().sum(0)).ravel(), 1.0)
    table = sp.diags(users**-config.source_exponent) @ table @ sp.diags(users**-config.target_exponent)
    if config.neighbours is not None:
        table = prune(table, config.neighbours)
    return CoVisitationChannel(name, config, Table.of(table))


def load(directory: Path) -> CoVisitationChannel:
    """Read what `save` wrote."""
    header = read_header(directory)
    return CoVisitationChannel(header.name, CoVisitationConfig.parse(header.config), Table.load(directory))


def count_pairs(events: Events, window: int, gap_exponent: float) -> sp.csr_matrix:
    """(N, N) float32: entry (i, j) sums 1 / gap^exponent over all times a user met j within `window` steps after i."""
    users, items = events.users, events.items
    counts = sp.csr_matrix((events.num_items, events.num_items), dtype=np.float32)
    # One gap at a time: memory holds the distinct pairs, never all pairs of the window.
    for gap in range(1, min(window, max(len(items) - 1, 0)) + 1):
        same = users[gap:] == users[:-gap]
        if not same.any():
            break
        weights = np.full(int(same.sum()), gap**-gap_exponent, np.float32)
        pairs = (items[:-gap][same].astype(np.int32), items[gap:][same].astype(np.int32))
        counts = counts + sp.csr_matrix((weights, pairs), counts.shape)
    return counts
