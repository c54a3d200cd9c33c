"""Which rows may come back: the sets that filters compile to, and which query asks under which of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged

Found = tuple[IntArray, FloatArray]
"""(B, k) rows padded with -1, and their scores padded with minus infinity."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Some of N rows. Each reader takes the form it reads fastest, made once: a filter is compiled for many questions.

    Attributes:
        mask: (N,) whether a row belongs to it; not changed afterwards.
    """

    mask: BoolArray

    @cached_property
    def rows(self) -> IntArray:
        """(n,) the rows, rising."""
        return np.flatnonzero(self.mask)

    @cached_property
    def size(self) -> int:
        """n, how many rows."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def bits(self) -> npt.NDArray[np.uint8]:
        """One bit a row, the lowest bit of a byte first, as FAISS reads them."""
        return np.packbits(self.mask, bitorder="little")

    @property
    def share(self) -> float:
        """The part of all rows that belongs to it, 0 … 1."""
        return self.size / max(len(self.mask), 1)

    @property
    def num_bytes(self) -> int:
        """Memory with all forms made."""
        return len(self.mask) + len(self.mask) // 8 + 8 * self.size

    def __reduce__(self) -> tuple[Any, ...]:
        # It travels with every call to another replica: as bits, an eighth, or as rows where those are fewer bytes.
        if 32 * self.size < len(self.mask):
            return _of_rows, (self.rows.astype(np.int32), len(self.mask))
        return _of_bits, (self.bits, len(self.mask))


@dataclass(frozen=True, eq=False)
class Allowed:
    """What may come back for each of B queries; different filters may stand side by side in a batch.

    Attributes:
        subsets: The different sets.
        choice: (B,) the place of each query's set, -1 where everything may come back.
    """

    subsets: tuple[Subset, ...]
    choice: IntArray

    @classmethod
    def everywhere(cls, subset: Subset, num_queries: int) -> "Allowed":
        """One set for all queries."""
        return cls((subset,), np.zeros(num_queries, np.int64))

    def __len__(self) -> int:
        return len(self.choice)

    def of(self, query: int) -> Subset | None:
        """One query's set, None where everything may come back."""
        place = int(self.choice[query])
        return self.subsets[place] if place >= 0 else None

    def take(self, queries: IntArray) -> "Allowed":
        """Some of the queries, in the given order."""
        return Allowed(self.subsets, self.choice[queries])

    def groups(self) -> Iterator[tuple[Subset | None, IntArray]]:
        """Each set that a query asks under, with the places of those queries."""
        for place in np.unique(self.choice).tolist():
            yield self.subsets[place] if place >= 0 else None, np.flatnonzero(self.choice == place)

    def close(self, scores: FloatArray) -> None:
        """Set (B, N) scores of what may not come back to minus infinity, in place."""
        for subset, places in self.groups():
            if subset is not None:
                # Whole rows are written where all queries share a set: the general form costs twice the time.
                cells = (slice(None), ~subset.mask) if len(places) == len(self) else np.ix_(places, ~subset.mask)
                scores[cells] = -np.inf


def by_subset(
    search: Callable[[FloatArray, Ragged | None, Subset | None], Found],
    queries: FloatArray,
    k: int,
    exclude: Ragged | None,
    allowed: Allowed | None,
) -> Found:
    """A search under one set, called for each of the sets of a batch; results in the order of the queries."""
    if allowed is None:
        return search(queries, exclude, None)
    if len(allowed) == 1:
        return search(queries, exclude, allowed.of(0))
    found = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    for subset, places in allowed.groups():
        excluded = None if exclude is None else exclude.take(places)
        found[0][places], found[1][places] = search(queries[places], excluded, subset)
    return found


def _of_rows(rows: npt.NDArray[np.int32], num_rows: int) -> Subset:
    mask = np.zeros(num_rows, np.bool_)
    mask[rows] = True
    return Subset(mask)


def _of_bits(bits: npt.NDArray[np.uint8], num_rows: int) -> Subset:
    return Subset(np.unpackbits(bits, count=num_rows, bitorder="little").astype(np.bool_))
