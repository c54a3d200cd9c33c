"""Shape letters, and arrays whose rows have different lengths.

Letters used in every signature: B queries, H history, K candidates, N catalogue, D vector, S shards, U users, E events.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """Rows of different length, stored end to end: row b is ``values[offsets[b]:offsets[b + 1]]``."""

    values: IntArray
    offsets: IntArray

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | IntArray]) -> "Ragged":
        """Build from one sequence a row."""
        arrays = [np.asarray(row, np.int64) for row in rows]
        lengths = np.array([len(array) for array in arrays], np.int64)
        values = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        return cls(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    @classmethod
    def empty(cls, num_rows: int) -> "Ragged":
        """`num_rows` rows without values."""
        return cls(np.zeros(0, np.int64), np.zeros(num_rows + 1, np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> IntArray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> IntArray:
        """Length of each row, (B,)."""
        lengths: IntArray = self.offsets[1:] - self.offsets[:-1]
        return lengths

    @property
    def row_of_value(self) -> IntArray:
        """The row that each value belongs to, (len(values),)."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.lengths)

    def take(self, rows: IntArray) -> "Ragged":
        """The given rows, in the given order."""
        rows = np.asarray(rows, np.int64)
        return self._slices(self.offsets[rows], self.lengths[rows])

    def where(self, mask: BoolArray) -> "Ragged":
        """The values under a (len(values),) mask; rows stay, though they may become empty."""
        lengths = np.bincount(self.row_of_value[mask], minlength=len(self))
        return Ragged(self.values[mask], np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))

    def last(self, count: int) -> "Ragged":
        """The last `count` values of each row."""
        if len(self.values) <= count:
            return self
        kept = np.minimum(self.lengths, count)
        return self._slices(self.offsets[1:] - kept, kept)

    def padded(self, width: int, fill: int = -1) -> IntArray:
        """(B, width): the last `width` values of each row, right-aligned after `fill`."""
        out = np.full((len(self), width), fill, np.int64)
        kept = self.last(width)
        column = width - kept.lengths[kept.row_of_value] + np.arange(len(kept.values)) - kept.offsets[kept.row_of_value]
        out[kept.row_of_value, column] = kept.values
        return out

    def _slices(self, starts: IntArray, lengths: IntArray) -> "Ragged":
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
        return Ragged(self.values[places], offsets)
