"""Ridge regression of items on items: one inverse for all where it fits into memory, else a small one for each target.

Both solve (gram + penalty I) B = targets, all (N, N); the small ones on the rows that matter most to each column.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import scipy.sparse as sp
from scipy.linalg import lapack

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.retrieval.channels.counting import Block
from recsys_ray.retrieval.channels.table import prune

GRAM_NEIGHBOURS = 1000
_BATCH_CELLS = 2_000_000  # cells of the small matrices solved at once, 100 MB with the places they are read from


def inverse(gram: Iterable[Block], known: IntArray, penalty: float) -> FloatArray:
    """(n, n) float32: the inverse of (gram + penalty I), of some items.

    By Cholesky, in place: memory holds one dense matrix of 4 n² bytes and one block; the time is that of n³
    multiplications.

    Args:
        gram: Symmetric, positive semi-definite.
        known: (n,) rising rows of these items.
        penalty: Above 0.
    """
    matrix = np.empty((len(known), len(known)), np.float32)
    for start, counts in gram:
        first, last = np.searchsorted(known, [start, start + counts.shape[0]])
        matrix[first:last] = counts[known[first:last] - start][:, known].toarray()
    matrix[np.diag_indices(len(known))] += penalty
    # LAPACK overwrites matrices in Fortran's order only; the transpose of a symmetric one is itself.
    factor, _ = lapack.spotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    half, _ = lapack.spotri(factor, lower=1, overwrite_c=1)
    result: FloatArray = half.T
    for start in range(0, len(result), 1024):
        stop = start + 1024
        square = np.triu(result[start:stop, start:stop])
        result[start:stop, start:stop] = square + np.triu(square, 1).T
        result[stop:, start:stop] = result[start:stop, stop:].T
    return result


def rarer_half(block: Block, rank: IntArray) -> sp.csr_matrix:
    """Those pairs of a block of a gram matrix whose row is not the more frequent item, `GRAM_NEIGHBOURS` a row.

    Together the halves hold each pair once; only pairs of frequent items that hardly meet are left out.

    Args:
        block: Of the whole matrix.
        rank: (N,) place of each item from the rarest to the most frequent.
    """
    start, counts = block
    rows = start + np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    values = np.where(rank[rows] <= rank[counts.indices], counts.data, 0)
    half = sp.csr_matrix((values, counts.indices.copy(), counts.indptr.copy()), counts.shape)
    half.eliminate_zeros()
    return prune(half, GRAM_NEIGHBOURS)


def solve_locally(gram: sp.csr_matrix, rank: IntArray, targets: sp.csr_matrix, penalty: float) -> sp.csr_matrix:
    """(N, N) B, transposed: row j solves (gram + penalty I) b = targets_j on the rows where targets_j is not 0.

    Steck 2019 (Markov random fields for collaborative filtering) approximates a sparse inverse likewise.

    Args:
        gram: The halves of `rarer_half`, one below the other.
        rank: As there.
        targets: (N, N), transposed too: row j is the right-hand side of item j. Prune it to bound the time, which is
            that of N m² look-ups and N m³ / 3 multiplications for m values a row.
        penalty: Above 0.
    """
    result = sp.csr_matrix(targets, dtype=np.float32, copy=True)
    # From the rarest: so each pair of a small matrix is looked up where it is.
    order = np.lexsort((rank[result.indices], np.repeat(np.arange(result.shape[0]), np.diff(result.indptr))))
    result.indices, result.data = result.indices[order], result.data[order]
    for rows in _batches(np.diff(result.indptr)):
        places = result.indptr[rows, None] + np.arange(np.diff(result.indptr)[rows].max())
        real = places < result.indptr[rows + 1, None]
        places = np.where(real, places, 0)
        matrices = _small_grams(gram, result.indices[places], real, penalty)
        solved = np.linalg.solve(matrices, (result.data[places] * real)[:, :, None])[:, :, 0]
        result.data[places[real]] = solved[real]
    result.sort_indices()
    return result


def _small_grams(gram: sp.csr_matrix, items: IntArray, real: np.ndarray, penalty: float) -> FloatArray:
    """(B, m, m) gram matrices of (B, m) items; those that are not real see only the penalty."""
    upper, lower = np.triu_indices(items.shape[1])
    values = np.asarray(gram[items[:, upper].ravel(), items[:, lower].ravel()]).reshape(len(items), -1)
    values *= real[:, upper] & real[:, lower]
    matrices = np.empty((len(items), items.shape[1], items.shape[1]), np.float32)
    matrices[:, upper, lower] = values
    matrices[:, lower, upper] = values
    diagonal = np.arange(items.shape[1])
    matrices[:, diagonal, diagonal] += penalty
    return matrices


def _batches(lengths: IntArray) -> Iterator[IntArray]:
    """Rows of about equal lengths above 0, as many as make `_BATCH_CELLS` small matrices' cells."""
    rows = np.argsort(lengths, kind="stable")
    rows = rows[np.searchsorted(lengths[rows], 1) :]
    while len(rows):
        # The last of a batch is its longest; it can only be longer than the first.
        count = int(np.searchsorted(np.arange(1, len(rows) + 1) * lengths[rows] ** 2, _BATCH_CELLS, "right"))
        yield rows[: max(count, 1)]
        rows = rows[max(count, 1) :]
