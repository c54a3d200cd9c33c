"""The rows of a catalogue split over S shards, each of which holds its own alone and searches them exactly."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.index.exact import ExactIndex, load_vectors, read_settings
from recsys_ray.index.prefix import PREFIX_FOLDER, PrefixIndex


@dataclass(frozen=True)
class Shard:
    """One of S parts. Every row is in exactly one of them, also those that come after the N that were published.

    Published rows are split into ranges, so that of a mapped file only the own one is read; later rows go round. In a
    shard rows have places, from 0 in the same order, so equal scores stay in the order of their rows.

    Attributes:
        number: From 0 to `of` - 1.
        of: S.
    """

    number: int
    of: int

    def bounds(self, num_rows: int) -> tuple[int, int]:
        """The range of the N published rows that it holds; empty where there are more shards than rows."""
        return num_rows * self.number // self.of, num_rows * (self.number + 1) // self.of

    def places(self, rows: IntArray, num_rows: int) -> IntArray:
        """(n,) the places of rows, -1 for those of other shards; N were published."""
        start, stop = self.bounds(num_rows)
        turn, which = np.divmod(rows - num_rows, self.of)
        later = np.where(which == self.number, stop - start + turn, -1)
        found: IntArray = np.where(rows < num_rows, np.where((rows >= start) & (rows < stop), rows - start, -1), later)
        return found

    def rows(self, places: IntArray, num_rows: int) -> IntArray:
        """The rows at places; -1 stays."""
        start, stop = self.bounds(num_rows)
        later = num_rows + self.number + (places - (stop - start)) * self.of
        found: IntArray = np.where(places < 0, -1, np.where(places < stop - start, start + places, later))
        return found

    def mask(self, mask: BoolArray, num_rows: int) -> BoolArray:
        """What a mask of N rows or more says of the shard's places."""
        start, stop = self.bounds(num_rows)
        return np.concatenate([mask[start:stop], mask[num_rows + self.number :: self.of]])


def load_shard(directory: Path, shard: Shard) -> ExactIndex | PrefixIndex:
    """Exact search over one shard of the vectors of an index, whichever kind that is; the others are not read.

    Raises:
        ArtifactError: When a file is missing or is not what the index's `save` wrote.
    """
    vectors = load_vectors(directory)
    start, stop = shard.bounds(len(vectors))
    if "dim" in read_settings(directory):
        return PrefixIndex(vectors[start:stop], load_shard(directory / PREFIX_FOLDER, shard))
    return ExactIndex(vectors[start:stop])
