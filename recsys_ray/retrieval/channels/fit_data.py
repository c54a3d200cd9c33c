"""All that a channel may be fitted on."""

from dataclasses import dataclass, field

import pyarrow as pa
import scipy.sparse as sp

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.index.spec import IndexConfig
from recsys_ray.retrieval.channels.shards import CountShard, MapShards, add_up, in_this_process
from recsys_ray.retrieval.query import Queries


@dataclass(frozen=True)
class Space:
    """Item vectors of one space.

    Attributes:
        id: The space id: names the weights and preprocessing the vectors came from.
        vectors: (N, D) float32 unit vectors; a row of zeros where an item has none.
        held_out: (Q, D) queries of this space as they will come, for measuring its index.
    """

    id: str
    vectors: FloatArray
    held_out: FloatArray


@dataclass(frozen=True)
class ValidationPairs:
    """Q questions that are not in the events, and their answers: settings are chosen on them.

    Attributes:
        history: Item rows the query may use, oldest first.
        exclude: Item rows that must not come back.
        items: Target item rows, at least one each.
    """

    history: Ragged
    exclude: Ragged
    items: Ragged

    def queries(self) -> Queries:
        """The questions."""
        return Queries.of_histories(self.history, self.exclude)

    def take(self, rows: IntArray) -> "ValidationPairs":
        """Some of them."""
        return ValidationPairs(self.history.take(rows), self.exclude.take(rows), self.items.take(rows))


@dataclass(frozen=True)
class FitData:
    """What `fit_channel` gives a channel; each takes what it needs.

    Attributes:
        events: Interactions to count; never those of validation or test.
        items: The catalogue with its derived columns (`core.schema`), in row order.
        fields: What its fields are used for.
        spaces: Name ("towers", or "text", "image", … for frozen content) to item vectors.
        validation: For settings that are chosen; None where there is nothing to choose on.
        index: How an index over a space is chosen.
        map_shards: Where `over_shards` counts: in this process, or `retrieval.on_ray.map_on_ray`.
    """

    events: Events
    items: pa.Table
    fields: Fields
    spaces: dict[str, Space] = field(default_factory=dict)
    validation: ValidationPairs | None = None
    index: IndexConfig = field(default_factory=IndexConfig)
    map_shards: MapShards = in_this_process

    def space(self, setting: str, name: str) -> Space:
        """The space of this name.

        Raises:
            ConfigError: When there is none.
        """
        if name not in self.spaces:
            allowed = ", ".join(sorted(self.spaces)) or "none: this run makes no vectors"
            raise ConfigError(setting, name, allowed)
        return self.spaces[name]

    def over_shards(self, count: CountShard) -> sp.csr_matrix:
        """The sum of `count(shard)` over fixed shards of users, whose events it gets; equal wherever they are counted.

        Args:
            count: Gives matrices of one shape in canonical form (columns sorted, none twice).
        """
        return add_up(self.map_shards(count, self.events))
