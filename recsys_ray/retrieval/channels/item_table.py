"""An item-to-item table as a channel: every item of the history leads to others, newer items count more."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.counting import Block
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import SparseRows, Table, decayed, evidence, prune
from recsys_ray.retrieval.query import Queries

AT_QUERY = frozenset({"decay", "history"})
"""Settings that the table does not depend on."""


class ItemTableConfig(ChannelSettings):
    """Base of the settings of item-to-item channels.

    Attributes:
        decay: What a step further back in the history counts, as a factor a step.
        history: The last so many items of a history are read.
        neighbours: Keep only this many of each item's entries, those farthest from 0; None keeps all.
    """

    decay: float = Field(0.6, gt=0, le=1)
    history: int = Field(200, ge=1)
    neighbours: int | None = Field(1000, ge=1)


C = TypeVar("C", bound=ItemTableConfig)


@dataclass(frozen=True)
class ItemTableChannel:
    """A fitted table: row i holds what item i leads to.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        table: (N, N).
    """

    name: str
    config: ItemTableConfig
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


def table_of(blocks: Iterable[Block], value: Callable[[Block], sp.csr_matrix], neighbours: int | None) -> Table:
    """The pruned table whose rows are what `value` makes of blocks of counts, one block in memory at a time."""
    return Table.of(sp.vstack([prune(value(block), neighbours) for block in blocks]))


def load_item_table(directory: Path, settings: type[C]) -> ItemTableChannel:
    """Read what `ItemTableChannel.save` wrote, with the settings class of its kind."""
    header = read_header(directory)
    return ItemTableChannel(header.name, settings.parse(header.config), Table.load(directory))
