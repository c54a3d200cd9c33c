"""Sparse tables and how queries read them: what item-to-item channels and TF-IDF share.

Batches and single queries, dense scores and candidate lists add up the same numbers in the same order, in float64, in
which a product of two float32 is exact. So they are equal to the last bit and ties fall the same way everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.index.live import places_of
from recsys_ray.retrieval.candidates import Candidates, concatenate, top_k
from recsys_ray.retrieval.query import Queries

Values = npt.NDArray[np.float64]

_BLOCK_VALUES = 4_000_000  # scores added up at once, about 50 MB
_MOST_DENSE_CELLS = 30_000_000  # 240 MB
_LEAST_WEIGHT = 1e-6  # a history step that counts less than this is invisible in float32
_PARTS = ("indptr", "indices", "data")


@dataclass(frozen=True)
class SparseRows:
    """B sparse rows of coefficients, e.g. what each history step of a query counts.

    Attributes:
        columns: The rows of the table that each query reads.
        values: (len(columns.values),) float32 what each counts.
    """

    columns: Ragged
    values: FloatArray

    def slice(self, start: int, stop: int) -> "SparseRows":
        """Queries `start` up to `stop`."""
        offsets = self.columns.offsets
        first, last = offsets[start], offsets[stop]
        columns = Ragged(self.columns.values[first:last], offsets[start : stop + 1] - first)
        return SparseRows(columns, self.values[first:last])


@dataclass(frozen=True)
class Table:
    """A sparse matrix in CSR form, memory-mapped when it was loaded.

    Attributes:
        indptr: (R + 1,) int64.
        indices: (nnz,) int32 columns, rising in each row.
        data: (nnz,) float32, no zeros.
        num_columns: N.
    """

    indptr: IntArray
    indices: np.ndarray
    data: FloatArray
    num_columns: int

    @classmethod
    def of(cls, matrix: sp.spmatrix) -> "Table":
        """From any scipy matrix, (R, N)."""
        rows = sp.csr_matrix(matrix, dtype=np.float32)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        indptr = rows.indptr.astype(np.int64)
        return cls(indptr, rows.indices.astype(np.int32), rows.data.astype(np.float32), rows.shape[1])

    def matrix(self) -> sp.csr_matrix:
        """As a scipy matrix; its checks read all of it."""
        return sp.csr_matrix((self.data, self.indices, self.indptr), (len(self.indptr) - 1, self.num_columns))

    def save(self, directory: Path) -> None:
        """Write one array file a part."""
        for part in _PARTS:
            np.save(directory / f"{part}.npy", getattr(self, part))
        np.save(directory / "num_columns.npy", np.int64(self.num_columns))

    @classmethod
    def load(cls, directory: Path) -> "Table":
        """Map what `save` wrote.

        Raises:
            ArtifactError: When a file is missing or the parts do not fit together.
        """
        try:
            indptr, indices, data = (
                np.load(directory / f"{part}.npy", mmap_mode="r", allow_pickle=False) for part in _PARTS
            )
            num_columns = int(np.load(directory / "num_columns.npy", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise ArtifactError(f"the table in {directory} cannot be read: {error}") from None
        if not len(indptr) or indptr[-1] != len(indices) or len(indices) != len(data):
            raise ArtifactError(f"the table in {directory} is not whole: its parts have different lengths")
        # Plain views: the memmap subclass costs microseconds at each indexing.
        return cls(np.asarray(indptr), np.asarray(indices), np.asarray(data), num_columns)

    def scores(self, rows: SparseRows) -> FloatArray:
        """(B, N) each query's weighted sum of table rows; 0 where nothing was added. The caller bounds B."""
        wanted, places = np.unique(rows.columns.values, return_inverse=True)
        part = _quick(self.matrix()[wanted].astype(np.float64))
        coefficients = SparseRows(Ragged(places, rows.columns.offsets), rows.values)

        def score(start: int, stop: int) -> FloatArray:
            block = coefficients.slice(start, stop)
            entries = (block.values.astype(np.float64), block.columns.values, block.columns.offsets)
            added = sp.csr_matrix(entries, (stop - start, len(wanted))) @ part
            total: FloatArray = added.toarray() if sp.issparse(added) else added
            return total

        return in_blocks(len(rows.columns), self.num_columns, score)

    def best(self, rows: SparseRows, queries: Queries, k: int) -> Candidates:
        """The k best columns of each query that have a positive score and may come back."""
        if len(queries) == 1:
            return self.best_of_one(rows, queries, k)

        def score(start: int, stop: int) -> FloatArray:
            return evidence(queries.take(np.arange(start, stop)), self.scores(rows.slice(start, stop)))

        return best_in_blocks(len(queries), self.num_columns, k, score)

    def best_of_one(self, rows: SparseRows, queries: Queries, k: int, factors: FloatArray | None = None) -> Candidates:
        """The same for one query, looking only at the columns that were touched; (N,) factors multiply the scores."""
        columns, values = self._entries(rows)
        if len(columns) * 8 < self.num_columns:
            touched, inverse = np.unique(columns, return_inverse=True)
            scores = np.bincount(inverse, values, minlength=len(touched)).astype(np.float32)
        else:
            dense = np.bincount(columns, values, minlength=self.num_columns).astype(np.float32)
            touched = np.flatnonzero(dense > 0)
            scores = dense[touched]
        if factors is not None:
            scores = scores * factors[touched]
        legal = (scores > 0) & may_come_back(touched, queries)
        touched, scores = touched[legal], scores[legal]
        found = top_k(scores[None, :], k)
        found.rows[:] = np.where(found.rows >= 0, touched[found.rows] if len(touched) else -1, -1)
        return found

    def rows(self, wanted: IntArray) -> sp.csr_matrix:
        """(len(wanted), N) some of the rows, in the given order, without looking at any other."""
        places, lengths = self._places(wanted)
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        return sp.csr_matrix((self.data[places], self.indices[places], offsets), (len(wanted), self.num_columns))

    def _entries(self, rows: SparseRows) -> tuple[IntArray, Values]:
        """All table entries that the queries read: column, and coefficient times value."""
        places, lengths = self._places(rows.columns.values)
        coefficients: Values = np.repeat(rows.values.astype(np.float64), lengths)
        return self.indices[places], self.data[places] * coefficients

    def _places(self, wanted: IntArray) -> tuple[IntArray, IntArray]:
        """Where the entries of some rows lie, end to end, and how many each row has."""
        starts = self.indptr[wanted]
        lengths = self.indptr[wanted + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(starts - (ends - lengths), lengths), lengths


def decayed(history: Ragged, decay: float, last: int) -> SparseRows:
    """What each step of a history counts: `decay` to the power of its distance from the newest step.

    Args:
        history: Item rows, oldest first.
        decay: In (0, 1]; 1 counts all steps alike.
        last: Older steps than this many are left out, and those that count less than 1e-6.
    """
    if decay < 1:
        last = min(last, 1 + int(np.log(_LEAST_WEIGHT) / np.log(decay)))
    recent = history.last(last)
    steps = np.repeat(recent.offsets[1:], recent.lengths) - 1 - np.arange(len(recent.values))
    return SparseRows(recent, (decay**steps).astype(np.float32))


def evidence(queries: Queries, scores: FloatArray) -> FloatArray:
    """(B, N) the scores with minus infinity where there is no positive score or the item must not come back."""
    scores[scores <= 0] = -np.inf
    return queries.mask_excluded(scores)


def may_come_back(rows: IntArray, queries: Queries) -> BoolArray:
    """(len(rows),) which of some rising rows the only query lets come back."""
    allowed = np.ones(len(rows), np.bool_)
    excluded = places_of(rows, queries.exclude.values)
    allowed[excluded[excluded >= 0]] = False
    subset = None if queries.allowed is None else queries.allowed.of(0)
    return allowed if subset is None else allowed & subset.mask[rows]


def prune(matrix: sp.csr_matrix, neighbours: int | None) -> sp.csr_matrix:
    """Keep the `neighbours` values of each row that are farthest from 0, of equal ones those of lower columns.

    Args:
        matrix: In canonical form.
        neighbours: None keeps all.
    """
    if neighbours is None:
        return matrix
    sizes, offsets = np.abs(matrix.data), matrix.indptr
    kept = np.ones(matrix.nnz, bool)
    for row in np.flatnonzero(np.diff(offsets) > neighbours):
        part = slice(offsets[row], offsets[row + 1])
        kept[part] = _largest(sizes[part], neighbours)
    places = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], places[offsets]), matrix.shape)


def _largest(values: FloatArray, count: int) -> BoolArray:
    """Which are the `count` largest; of equal ones the first."""
    least = np.partition(values, -count)[-count]
    kept: BoolArray = values > least
    kept[np.flatnonzero(values == least)[: count - np.count_nonzero(kept)]] = True
    return kept


def in_blocks(num_queries: int, num_items: int, score: Callable[[int, int], FloatArray]) -> FloatArray:
    """(B, N) filled by `score(start, stop)` a block of queries at a time."""
    result = np.empty((num_queries, num_items), np.float32)
    for start, stop in _blocks(num_queries, num_items):
        result[start:stop] = score(start, stop)
    return result


def best_in_blocks(num_queries: int, num_items: int, k: int, score: Callable[[int, int], FloatArray]) -> Candidates:
    """The k best of each query's row of `score(start, stop)`, computed a block of queries at a time."""
    parts = [top_k(score(start, stop), k) for start, stop in _blocks(num_queries, num_items)]
    return concatenate(parts) if parts else Candidates.empty(0, k)


def _blocks(num_queries: int, num_items: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries with about `_BLOCK_VALUES` scores each."""
    size = max(1, _BLOCK_VALUES // max(num_items, 1))
    for start in range(0, num_queries, size):
        yield start, min(start + size, num_queries)


def _quick(table: sp.csr_matrix) -> sp.csr_matrix | Values:
    """The table as what multiplies fastest: dense where an eighth of it is filled and it fits."""
    cells = table.shape[0] * table.shape[1]
    dense: Values = table.toarray() if table.nnz * 8 > cells and cells <= _MOST_DENSE_CELLS else table
    return dense
