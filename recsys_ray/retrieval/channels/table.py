"""Sparse tables and how queries read them: what item-to-item channels and TF-IDF share.

Batches and single queries, dense scores and candidate lists add up the same numbers in the same order, so they are
equal to the last bit and ties fall the same way everywhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.candidates import Candidates, concatenate, top_k
from recsys_ray.retrieval.query import Queries

_BLOCK_VALUES = 4_000_000  # values added up at once, about 100 MB
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
        """As a scipy matrix."""
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
        result = np.zeros((len(rows.columns), self.num_columns), np.float32)
        for start, stop in self._blocks(rows):
            queries, columns, values = self._entries(rows.slice(start, stop))
            flat = np.bincount(
                queries * self.num_columns + columns, values, minlength=(stop - start) * self.num_columns
            )
            result[start:stop] = flat.reshape(stop - start, self.num_columns)
        return result

    def best(self, rows: SparseRows, queries: Queries, k: int) -> Candidates:
        """The k best columns of each query that have a positive score and may come back."""
        if len(queries) == 1:
            return self._best_of_one(rows, queries, k)
        parts = []
        for start, stop in self._blocks(rows):
            block = queries.take(np.arange(start, stop))
            parts.append(top_k(evidence(block, self.scores(rows.slice(start, stop))), k))
        return concatenate(parts) if parts else Candidates.empty(0, k)

    def _best_of_one(self, rows: SparseRows, queries: Queries, k: int) -> Candidates:
        """The same for one query, looking only at the columns that were touched."""
        _, columns, values = self._entries(rows)
        if len(columns) * 8 < self.num_columns:
            touched, inverse = np.unique(columns, return_inverse=True)
            scores = np.bincount(inverse, values, minlength=len(touched)).astype(np.float32)
        else:
            dense = np.bincount(columns, values, minlength=self.num_columns).astype(np.float32)
            touched = np.flatnonzero(dense > 0)
            scores = dense[touched]
        legal = (scores > 0) & may_come_back(touched, queries)
        touched, scores = touched[legal], scores[legal]
        found = top_k(scores[None, :], k)
        found.rows[:] = np.where(found.rows >= 0, touched[found.rows] if len(touched) else -1, -1)
        return found

    def _entries(self, rows: SparseRows) -> tuple[IntArray, IntArray, FloatArray]:
        """All table entries that the queries read: query, column, coefficient times value."""
        wanted = rows.columns.values
        starts = self.indptr[wanted]
        lengths = self.indptr[wanted + 1] - starts
        ends = np.cumsum(lengths)
        total = int(ends[-1]) if len(ends) else 0
        places = np.arange(total) + np.repeat(starts - (ends - lengths), lengths)
        values = self.data[places] * np.repeat(rows.values, lengths)
        queries = np.repeat(rows.columns.row_of_value, lengths) if len(rows.columns) > 1 else np.zeros(1, np.int64)
        return queries, self.indices[places], values

    def _blocks(self, rows: SparseRows) -> Iterator[tuple[int, int]]:
        """Ranges of queries that read at most about `_BLOCK_VALUES` entries and fill as many scores."""
        wanted = rows.columns.values
        read = np.concatenate([[0], np.cumsum(self.indptr[wanted + 1] - self.indptr[wanted])])[rows.columns.offsets]
        cost = read + np.arange(len(rows.columns) + 1) * self.num_columns
        start = 0
        while start < len(rows.columns):
            stop = int(np.searchsorted(cost, cost[start] + _BLOCK_VALUES, "right")) - 1
            stop = min(max(stop, start + 1), len(rows.columns))
            yield start, stop
            start = stop


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
    """(len(rows),) which of the rows the only query lets come back."""
    allowed = np.isin(rows, queries.exclude.values, invert=True)
    return allowed if queries.allowed is None else allowed & queries.allowed[rows]


def prune(matrix: sp.csr_matrix, neighbours: int) -> sp.csr_matrix:
    """Keep the `neighbours` largest values of each row; of equal ones those of lower columns."""
    matrix = sp.csr_matrix(matrix)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, rows))
    place = np.arange(matrix.nnz) - np.repeat(matrix.indptr[:-1], np.diff(matrix.indptr))
    kept = order[place < neighbours]
    return sp.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)


def in_blocks(num_queries: int, num_items: int, score: Callable[[int, int], FloatArray]) -> FloatArray:
    """(B, N) filled by `score(start, stop)` a block of queries at a time."""
    result = np.empty((num_queries, num_items), np.float32)
    size = max(1, _BLOCK_VALUES // max(num_items, 1))
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        result[start:stop] = score(start, stop)
    return result
