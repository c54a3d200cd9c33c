"""A channel whose query is a vector folded in from the history: it is computed when asked, so it is never stale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import Field

from recsys_ray.core.arrays import BoolArray, FloatArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.index.exact import ExactIndex, load_vectors, save_vectors
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import write_header
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import SparseRows, best_in_blocks, decayed, in_blocks
from recsys_ray.retrieval.query import Queries

AT_QUERY = frozenset({"decay", "history"})
"""Settings that the item vectors do not depend on."""
_USERS_FILE = "users.npy"


class FoldedConfig(ChannelSettings):
    """Base of the settings of channels that fold histories in.

    Attributes:
        decay: What a step further back in the history counts, as a factor a step.
        history: The last so many items of a history are read.
    """

    decay: float = Field(0.7, gt=0, le=1)
    history: int = Field(200, ge=1)


class Fold(Protocol):
    """How a history becomes a vector."""

    def __call__(self, steps: SparseRows) -> FloatArray:
        """(B, D) the query vectors; zeros where no step tells anything."""
        ...


@dataclass(frozen=True)
class FoldedChannel:
    """Item vectors, and how a history becomes a vector among them.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        vectors: (N, D) float32, zeros where nobody met the item.
        users: (N,) float32 how many users met each item.
        fold: Of each history's distinct items, decayed.
    """

    name: str
    config: FoldedConfig
    vectors: FloatArray
    users: FloatArray
    fold: Fold

    @property
    def reads(self) -> Reads:
        """The history."""
        return frozenset({"history"})

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        folded, index = self._fold(queries), ExactIndex(self.vectors)
        scores = in_blocks(len(queries), len(self.vectors), lambda start, stop: index.scores(folded[start:stop]))
        scores[~folded.any(1)] = -np.inf
        scores[:, self.users == 0] = -np.inf
        return queries.mask_excluded(scores)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        everything = np.arange(len(queries))
        return best_in_blocks(
            len(queries), len(self.vectors), k, lambda start, stop: self.scores(queries.take(everything[start:stop]))
        )

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config)
        save_vectors(directory, self.vectors)
        np.save(directory / _USERS_FILE, self.users)

    def _fold(self, queries: Queries) -> FloatArray:
        return self.fold(decayed(distinct(queries.history), self.config.decay, self.config.history))


def load_items(directory: Path) -> tuple[FloatArray, FloatArray]:
    """The vectors and users of the items that `FoldedChannel.save` wrote.

    Raises:
        ArtifactError: When a file is missing or they do not fit together.
    """
    vectors = load_vectors(directory)
    try:
        users = np.load(directory / _USERS_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / _USERS_FILE} cannot be read: {error}") from None
    if users.shape != vectors.shape[:1]:
        raise ArtifactError(f"{directory}: vectors of {len(vectors)} items, but users of {len(users)}")
    return vectors, users


def distinct(history: Ragged) -> Ragged:
    """Each item at its newest place only: fits count users of an item, not how often they met it."""
    owner = history.row_of_value
    order = np.lexsort((np.arange(len(owner)), history.values, owner))
    last = np.ones(len(order), bool)
    last[:-1] = (np.diff(owner[order]) != 0) | (np.diff(history.values[order]) != 0)
    kept: BoolArray = np.zeros(len(order), bool)
    kept[order[last]] = True
    return history.where(kept)
