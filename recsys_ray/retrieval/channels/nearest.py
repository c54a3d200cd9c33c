"""Nearest: the items whose vectors lie nearest to the query's vector in one space, through an index."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import SpaceError
from recsys_ray.index.exact import load_vectors
from recsys_ray.index.live import LiveIndex, width
from recsys_ray.index.shard import Shard, load_shard
from recsys_ray.index.spec import Index, choose, load_index
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import in_blocks
from recsys_ray.retrieval.query import Queries

_INDEX = "index"


class NearestConfig(ChannelSettings):
    """Nearest neighbours of the query vector.

    Attributes:
        kind: Which channel this is.
        space: Name of the space: "towers" (trained), or "text", "image" (frozen content), where the run has them.
    """

    kind: Literal["nearest"] = "nearest"
    space: str = "towers"


@dataclass(frozen=True)
class NearestChannel:
    """An index over the item vectors of one space.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        space_id: The space that its vectors, and the queries it takes, live in.
        index: Over the item vectors.
        facts: How the index was chosen and what was measured (`Choice.summary`).
    """

    name: str
    config: NearestConfig
    space_id: str
    index: Index
    facts: dict[str, Any]

    @property
    def reads(self) -> Reads:
        """Query vectors."""
        return frozenset({"vectors"})

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        vectors = self._vectors(queries)
        num_items = len(self.index.vectors)
        if vectors is None:
            return np.full((len(queries), num_items), -np.inf, np.float32)
        scores = in_blocks(len(queries), num_items, lambda start, stop: self.index.scores(vectors[start:stop]))
        scores[~vectors.any(1)] = -np.inf
        return queries.mask_excluded(scores)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        found = Candidates.empty(len(queries), k)
        vectors = self._vectors(queries)
        asked: IntArray = np.zeros(0, np.int64) if vectors is None else np.flatnonzero(vectors.any(1))
        if vectors is None or len(asked) == 0:
            return found
        exclude, allowed = queries.exclude, queries.allowed
        if len(asked) < len(queries):
            exclude, allowed = exclude.take(asked), allowed and allowed.take(asked)
        rows, scores = self.index.search(vectors[asked], k, exclude, allowed)
        found.rows[asked], found.scores[asked] = rows, scores
        return found

    @property
    def dim(self) -> int:
        """Length D of its vectors."""
        return width(self.index)

    @property
    def num_changed(self) -> int:
        """How many vectors are searched one by one, beside the index."""
        return len(self.index.rows) if isinstance(self.index, LiveIndex) else 0

    def put(self, rows: IntArray, vectors: FloatArray, removed: IntArray) -> "NearestChannel":
        """The channel after a batch of changes; see `LiveIndex.put`."""
        index = self.index if isinstance(self.index, LiveIndex) else LiveIndex.over(self.index)
        return replace(self, index=index.put(rows, vectors, removed))

    def compacted(self) -> "NearestChannel":
        """The same with all changes in its index; takes as long as building one."""
        return replace(self, index=self.index.compacted()) if isinstance(self.index, LiveIndex) else self

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config, {"space_id": self.space_id, **self.facts})
        (directory / _INDEX).mkdir()
        self.index.save(directory / _INDEX)

    def _vectors(self, queries: Queries) -> FloatArray | None:
        """The queries' vectors in this space; None when the questions were not encoded at all.

        Raises:
            SpaceError: When they were encoded, but in other spaces, or the length differs.
        """
        if not queries.vectors:
            return None
        vectors = queries.vectors.get(self.space_id)
        if vectors is None:
            came = ", ".join(sorted(queries.vectors))
            raise SpaceError(f"channel {self.name!r} searches space {self.space_id}; the queries are in {came}")
        came_dim, dim = vectors.shape[1], self.dim
        if came_dim != dim:
            raise SpaceError(f"channel {self.name!r}: space {self.space_id} has {dim} dimensions, not {came_dim}")
        return vectors


def fit(name: str, config: NearestConfig, data: FitData) -> NearestChannel:
    """Choose and build the index over the space's item vectors.

    Raises:
        ConfigError: When the run has no such space.
        MissingExtraError: When the index setting needs FAISS and it is not installed.
    """
    space = data.space(f"channels.{name}.space", config.space)
    choice = choose(space.vectors, space.held_out, data.index)
    return NearestChannel(name, config, space.id, choice.index, {"index": choice.summary()})


def load(directory: Path) -> NearestChannel:
    """Read what `save` wrote."""
    return _read(directory, load_index(directory / _INDEX))


def load_rows(directory: Path, shard: Shard) -> NearestChannel:
    """The rows of one shard of what `save` wrote, by their places in it, searched exactly."""
    return _read(directory, load_shard(directory / _INDEX, shard))


def num_rows(directory: Path) -> int:
    """How many items are in what `save` wrote; the vectors are not read."""
    return len(load_vectors(directory / _INDEX))


def _read(directory: Path, index: Index) -> NearestChannel:
    header = read_header(directory)
    facts = dict(header.facts)
    space_id = str(facts.pop("space_id"))
    config = NearestConfig.parse(header.config)
    return NearestChannel(header.name, config, space_id, index, facts)
