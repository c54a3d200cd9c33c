"""Inner products of queries with chosen rows, without copying the rows where FAISS is there."""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray


def products(queries: FloatArray, vectors: FloatArray, rows: IntArray) -> FloatArray:
    """Inner products with the rows of each query.

    Each product is summed by itself, so it is the same number to the last bit whatever else is in the batch.

    Args:
        queries: (B, D) float32.
        vectors: (N, D) float32, contiguous.
        rows: (B, n) rows, -1 for none.

    Returns:
        (B, n) float32, minus infinity where the row is -1.
    """
    if not _has_faiss():
        return _gathered(queries, vectors, rows)
    faiss: Any = import_module("faiss")  # its stubs know little of it
    queries, rows = np.ascontiguousarray(queries, np.float32), np.ascontiguousarray(rows, np.int64)
    found = np.empty(rows.shape, np.float32)
    if rows.size:
        pointer = faiss.swig_ptr
        faiss.fvec_inner_products_by_idx(
            pointer(found), pointer(queries), pointer(vectors), pointer(rows), vectors.shape[1], *rows.shape
        )
    return found


def _gathered(queries: FloatArray, vectors: FloatArray, rows: IntArray) -> FloatArray:
    found: FloatArray = np.einsum("bnd,bd->bn", vectors[rows], queries)
    found[rows < 0] = -np.inf
    return found


@cache
def _has_faiss() -> bool:
    return find_spec("faiss") is not None
