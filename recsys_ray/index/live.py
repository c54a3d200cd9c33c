"""An index that changes while it serves: a base, an exact delta over it, and tombstones for what no longer holds.

A value: each batch of changes gives a new index and leaves the old one to the searches that are under way in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import FaissIndex, build
from recsys_ray.index.prefix import PrefixIndex, cut
from recsys_ray.index.spec import Index
from recsys_ray.index.subset import Allowed, Found, Subset


@dataclass(frozen=True, eq=False)
class Present:
    """Which of the first rows still hold, and what is left there of a question.

    Attributes:
        num_rows: n; rows from here on are somebody else's.
        mask: (n,) which rows hold; None: all.
    """

    num_rows: int
    mask: BoolArray | None = None
    # A filter is compiled for many questions, and so is what is left of it here.
    _narrowed: "WeakKeyDictionary[Subset, Subset]" = field(default_factory=WeakKeyDictionary, repr=False)

    @cached_property
    def subset(self) -> Subset:
        """The rows that hold."""
        return Subset(np.ones(self.num_rows, np.bool_) if self.mask is None else self.mask)

    def without(self, rows: IntArray) -> "Present":
        """The same without some rows."""
        rows = rows[rows < self.num_rows]
        return self if not len(rows) else Present(self.num_rows, _set(self.subset.mask, rows, False))

    def holding(self, rows: IntArray) -> "Present":
        """The same with some rows back."""
        rows = rows[rows < self.num_rows]
        return self if self.mask is None or not len(rows) else Present(self.num_rows, _set(self.mask, rows, True))

    def allowed(self, allowed: Allowed | None, num_queries: int) -> Allowed | None:
        """What may come back of these rows. Rows that a filter does not reach to are not allowed by it."""
        if self.mask is None and (allowed is None or all(len(one.mask) == self.num_rows for one in allowed.subsets)):
            return allowed
        if allowed is None:
            return None if self.mask is None else Allowed.everywhere(self.subset, num_queries)
        subsets = tuple(self._narrow(one) for one in allowed.subsets)
        if self.mask is None:
            return Allowed(subsets, allowed.choice)
        return Allowed((*subsets, self.subset), np.where(allowed.choice < 0, len(subsets), allowed.choice))

    def covers(self, rows: Ragged) -> bool:
        """Whether all listed rows are among the first n."""
        return not len(rows.values) or bool(rows.values.max() < self.num_rows)

    def listed(self, rows: Ragged) -> Ragged:
        """The listed rows that are among the first n, whether they hold or not."""
        return rows if self.covers(rows) else rows.where(rows.values < self.num_rows)

    def _narrow(self, subset: Subset) -> Subset:
        known = self._narrowed.get(subset)
        if known is None:
            mask = np.zeros(self.num_rows, np.bool_)
            shared = min(self.num_rows, len(subset.mask))
            mask[:shared] = subset.mask[:shared]
            known = Subset(mask if self.mask is None else mask & self.mask)
            self._narrowed[subset] = known
        return known


@dataclass(frozen=True, eq=False)
class LiveIndex:
    """A base index with changes over it; its results are those of an index that was built anew.

    Attributes:
        base: Over rows 0 … T-1.
        present: Which of those rows hold as they are in the base.
        rows: (d,) rows that were put since, rising; of those below T the base holds an older vector.
        delta: Exact, over the d vectors.
    """

    base: Index
    present: Present
    rows: IntArray
    delta: Index

    @classmethod
    def over(cls, base: Index) -> "LiveIndex":
        """Without changes so far."""
        empty = np.zeros((0, base.vectors.shape[1]), np.float32)
        return cls(base, Present(len(base.vectors)), np.zeros(0, np.int64), _exact_like(base, empty))

    @property
    def factory(self) -> str:
        """That of the base."""
        return self.base.factory

    @property
    def num_rows(self) -> int:
        """From 0 to the last row that was ever put."""
        return max(self.present.num_rows, int(self.rows[-1]) + 1 if len(self.rows) else 0)

    @cached_property
    def vectors(self) -> FloatArray:
        """(num_rows, D), zeros where a row does not hold. Copies all of them: see `at` for some."""
        return self.at(np.arange(self.num_rows))

    def at(self, rows: IntArray) -> FloatArray:
        """(…, D) the vectors of rows (…); zeros where a row does not hold."""
        flat = rows.ravel()
        vectors = np.zeros((len(flat), self.base.vectors.shape[1]), np.float32)
        inside = np.flatnonzero(flat < self.present.num_rows)
        if self.present.mask is not None:
            inside = inside[self.present.mask[flat[inside]]]
        vectors[inside] = self.base.vectors[flat[inside]]
        places = places_of(self.rows, flat)
        vectors[places >= 0] = self.delta.vectors[places[places >= 0]]
        return vectors.reshape(*rows.shape, vectors.shape[1])

    def put(self, rows: IntArray, vectors: FloatArray, removed: IntArray) -> "LiveIndex":
        """The index after a batch of changes.

        Args:
            rows: (n,) what is new or has another vector now, each once.
            vectors: (n, D) unit vectors.
            removed: (m,) what is gone, none of `rows`; rows that are not there change nothing.
        """
        kept = ~np.isin(self.rows, np.concatenate([rows, removed]))
        merged = np.concatenate([self.rows[kept], rows])
        order = np.argsort(merged)
        delta = np.concatenate([self.delta.vectors[kept], vectors])[order]
        present = self.present.without(np.concatenate([rows, removed]))
        return replace(self, present=present, rows=merged[order], delta=_exact_like(self.base, delta))

    def compacted(self) -> "LiveIndex":
        """The same with all changes in a new base of the same kind; takes as long as building one."""
        base = _built_like(self.base, self.vectors)
        mask = np.zeros(self.num_rows, np.bool_)
        mask[: self.present.num_rows] = self.present.subset.mask
        mask[self.rows] = True
        empty = self.delta.vectors[:0]
        present = Present(self.num_rows, None if mask.all() else mask)
        return LiveIndex(base, present, self.rows[:0], _exact_like(base, empty))

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, num_rows) exact inner products, minus infinity where a row does not hold; the caller bounds B."""
        scores = np.full((len(queries), self.num_rows), -np.inf, np.float32)
        held = self.present.subset.rows
        scores[:, held] = self.base.scores(queries)[:, held]
        scores[:, self.rows] = self.delta.scores(queries)
        return scores

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: Allowed | None = None
    ) -> Found:
        """As `ExactIndex.search`, up to the recall of the base."""
        old = self.base.search(
            queries,
            k,
            None if exclude is None else self.present.listed(exclude),
            self.present.allowed(allowed, len(queries)),
        )
        if not len(self.rows):
            return old
        places, scores = self.delta.search(queries, k, self._exclude(exclude), self._allowed(allowed))
        return merged([old, (np.where(places >= 0, self.rows[places], -1), scores)], k)

    def save(self, directory: Path) -> None:
        """Write it as an index that was built anew; rows that do not hold are vectors of zeros there."""
        self.compacted().base.save(directory)

    def _exclude(self, exclude: Ragged | None) -> Ragged | None:
        if exclude is None:
            return None
        places = Ragged(places_of(self.rows, exclude.values), exclude.offsets)
        return places.where(places.values >= 0)

    def _allowed(self, allowed: Allowed | None) -> Allowed | None:
        return None if allowed is None else picked(allowed, self.rows)


def picked(allowed: Allowed, rows: IntArray) -> Allowed:
    """What may come back of some rows, as rows 0 … n-1; what a filter does not reach to is not allowed by it."""
    return Allowed(tuple(Subset(_reach(one.mask, rows)) for one in allowed.subsets), allowed.choice)


def width(index: Index) -> int:
    """Length D of an index's vectors; of a live one without copying them."""
    return int((index.base if isinstance(index, LiveIndex) else index).vectors.shape[1])


def merged(lists: Sequence[Found], k: int) -> Found:
    """The k best of lists that share no row, each k long; equal scores by rising row."""
    rows = np.concatenate([one[0] for one in lists], axis=1)
    scores = np.concatenate([one[1] for one in lists], axis=1)
    # Padding last, also where a true score is minus infinity: it has no row.
    order = np.lexsort((np.where(rows < 0, np.iinfo(np.int64).max, rows), -scores), axis=1)[:, :k]
    return np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)


def _reach(mask: BoolArray, rows: IntArray) -> BoolArray:
    """(n,) the mask at some rows, false beyond its end."""
    inside = rows < len(mask)
    reached = np.zeros(len(rows), np.bool_)
    reached[inside] = mask[rows[inside]]
    return reached


def places_of(rows: IntArray, wanted: IntArray) -> IntArray:
    """(n,) the place of each wanted row among rising rows, -1 where it is not there."""
    if not len(rows):
        return np.full(len(wanted), -1, np.int64)
    places = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
    found: IntArray = np.where(rows[places] == wanted, places, -1)
    return found


def _set(mask: BoolArray, rows: IntArray, value: bool) -> BoolArray:
    changed = mask.copy()
    changed[rows] = value
    return changed


def _exact_like(base: Index, vectors: FloatArray) -> Index:
    """Exact search that scores as the base does."""
    if isinstance(base, PrefixIndex):
        return PrefixIndex(vectors, ExactIndex(cut(vectors, base.dim)))
    return ExactIndex(vectors)


def _built_like(base: Index, vectors: FloatArray) -> Index:
    """An index of the base's kind and settings; what filters cost is taken over, not measured again."""
    if isinstance(base, PrefixIndex):
        return PrefixIndex(vectors, _built_like(base.inner, cut(vectors, base.dim)))
    if isinstance(base, FaissIndex):
        built = build(vectors, base.factory, base.parameters, base.threads)
        return replace(built, filtered_recall=base.filtered_recall, calibration=base.calibration)
    return ExactIndex(vectors)
