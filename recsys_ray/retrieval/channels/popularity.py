"""Popularity: the same answer for everybody, and the only one for somebody who has no history."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import evidence
from recsys_ray.retrieval.query import Queries

_COUNTS_FILE = "counts.npy"


class PopularityConfig(ChannelSettings):
    """Events of each item, over all time.

    Attributes:
        kind: Which channel this is.
    """

    kind: Literal["popularity"] = "popularity"


@dataclass(frozen=True)
class PopularityChannel:
    """Counts, and the items that have any in order.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        counts: (N,) float32 events of each item.
        order: Rows with at least one event, most popular first, equal ones by rising row.
    """

    name: str
    config: PopularityConfig
    counts: FloatArray
    order: IntArray

    @property
    def reads(self) -> Reads:
        """Nothing."""
        return frozenset()

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        return evidence(queries, np.tile(self.counts, (len(queries), 1)))

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        order = self.order if queries.allowed is None else self.order[queries.allowed[self.order]]
        found = Candidates.empty(len(queries), k)
        for query in range(len(queries)):
            excluded = queries.exclude[query]
            first = order[: k + len(excluded)]
            rows = first[np.isin(first, excluded, invert=True)][:k]
            found.rows[query, : len(rows)] = rows
            found.scores[query, : len(rows)] = self.counts[rows]
        return found

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config)
        np.save(directory / _COUNTS_FILE, self.counts)


def fit(name: str, config: PopularityConfig, data: FitData) -> PopularityChannel:
    """Count the events of each item."""
    return _of_counts(name, config, data.events.item_counts().astype(np.float32))


def load(directory: Path) -> PopularityChannel:
    """Read what `save` wrote.

    Raises:
        ArtifactError: When a file is missing or cannot be read.
    """
    header = read_header(directory)
    try:
        counts = np.load(directory / _COUNTS_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / _COUNTS_FILE} cannot be read: {error}") from None
    return _of_counts(header.name, PopularityConfig.parse(header.config), counts)


def _of_counts(name: str, config: PopularityConfig, counts: FloatArray) -> PopularityChannel:
    order = np.argsort(-counts, kind="stable")
    return PopularityChannel(name, config, counts, order[counts[order] > 0].astype(np.int64))
