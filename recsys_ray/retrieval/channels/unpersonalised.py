"""Channels that answer everybody alike: one score an item, and the items in its order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import ArtifactError, NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.index.subset import Subset
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import evidence
from recsys_ray.retrieval.query import Queries

_SCORES_FILE = "scores.npy"

C = TypeVar("C", bound=ChannelSettings)


@dataclass(frozen=True)
class UnpersonalisedChannel:
    """One score an item, whoever asks.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        item_scores: (N,) float32; 0 where there is no evidence.
        order: Rows with a positive score, best first, equal ones by rising row.
    """

    name: str
    config: ChannelSettings
    item_scores: FloatArray
    order: IntArray

    @classmethod
    def of(cls, name: str, config: ChannelSettings, item_scores: FloatArray) -> Self:
        """From the score of each item, (N,)."""
        order = np.argsort(-item_scores, kind="stable")
        return cls(name, config, item_scores, order[item_scores[order] > 0].astype(np.int64))

    @property
    def reads(self) -> Reads:
        """Nothing."""
        return frozenset()

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        return evidence(queries, np.tile(self.item_scores, (len(queries), 1)))

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        found = Candidates.empty(len(queries), k)
        for query in range(len(queries)):
            subset = None if queries.allowed is None else queries.allowed.of(query)
            rows = self._best(k, queries.exclude[query], subset)
            found.rows[query, : len(rows)] = rows
            found.scores[query, : len(rows)] = self.item_scores[rows]
        return found

    def _best(self, k: int, excluded: IntArray, subset: Subset | None) -> IntArray:
        """Up to k rows, best first: of a tight filter its few rows are sorted, else the order is walked."""
        wanted = k + len(excluded)
        if subset is None:
            first = self.order[:wanted]
        elif subset.size**2 < wanted * len(subset.mask):
            rows = subset.rows[self.item_scores[subset.rows] > 0]
            first = rows[np.argsort(-self.item_scores[rows], kind="stable")]
        else:
            first = self._walk(wanted, subset)
        return first[np.isin(first, excluded, invert=True)][:k]

    def _walk(self, wanted: int, subset: Subset) -> IntArray:
        """The first allowed rows of the order: twice as far each time, until there are enough."""
        step = int(wanted / max(subset.share, 1e-9)) + 1
        while True:
            part = self.order[:step]
            first = part[subset.mask[part]]
            if len(first) >= wanted or step >= len(self.order):
                return first[:wanted]
            step *= 2

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config)
        np.save(directory / _SCORES_FILE, self.item_scores)


def load_unpersonalised(directory: Path, settings: type[C]) -> UnpersonalisedChannel:
    """Read what `UnpersonalisedChannel.save` wrote, with the settings class of its kind.

    Raises:
        ArtifactError: When a file is missing or cannot be read.
    """
    header = read_header(directory)
    try:
        scores = np.load(directory / _SCORES_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / _SCORES_FILE} cannot be read: {error}") from None
    return UnpersonalisedChannel.of(header.name, settings.parse(header.config), scores)


def require_real_time(name: str, events: Events) -> None:
    """Refuse events that are only positions in a history.

    Raises:
        NotApplicable: When the events do not say when they happened.
    """
    if not events.has_real_time:
        reason = "there are no events" if not len(events) else "their timestamps are positions, not dates"
        raise NotApplicable(f"channel {name!r} needs events that say when they happened: {reason}")
