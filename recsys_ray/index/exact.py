"""Exact search over all vectors: the oracle for approximate indexes, and the index of small catalogues."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.index.topk import top_k_columns

INDEX_FILE = "index.json"
VECTORS_FILE = "vectors.npy"
EXACT = "exact"
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class ExactIndex:
    """Inner products with every vector, by BLAS, a block of queries at a time.

    Attributes:
        vectors: (N, D) float32.
    """

    vectors: FloatArray

    @property
    def factory(self) -> str:
        """The name it goes by in settings and reports."""
        return EXACT

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) inner products; the caller bounds B."""
        found: FloatArray = queries @ self.vectors.T
        return found

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """The k best items of each query.

        Args:
            queries: (B, D).
            k: How many.
            exclude: For each query, rows that must not come back.
            allowed: (N,) the rows that may come back; None allows all.

        Returns:
            (B, k) rows padded with -1 and (B, k) scores padded with minus infinity.
        """
        subset = None if allowed is None else np.flatnonzero(allowed)
        vectors = self.vectors if subset is None else self.vectors[subset]
        rows = np.full((len(queries), k), -1, np.int64)
        values = np.full((len(queries), k), -np.inf, np.float32)
        for start, stop in blocks(len(queries), len(vectors)):
            scores = queries[start:stop] @ vectors.T
            if exclude is not None:
                _mask(scores, exclude, start, stop, subset)
            rows[start:stop], values[start:stop] = top_k_columns(scores, k)
        if subset is not None and len(subset):
            rows = np.where(rows >= 0, subset[rows], -1)
        return rows, values

    def save(self, directory: Path) -> None:
        """Write the vectors and `index.json`."""
        save_vectors(directory, self.vectors)
        (directory / INDEX_FILE).write_text(json.dumps({"factory": EXACT}) + "\n")


def blocks(num_queries: int, width: int) -> Iterator[tuple[int, int]]:
    """Ranges of queries within 64 MiB, where each takes `width` float32 values: a score of every item, say."""
    size = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    for start in range(0, num_queries, size):
        yield start, min(start + size, num_queries)


def save_vectors(directory: Path, vectors: FloatArray) -> None:
    """Write `vectors.npy`."""
    np.save(directory / VECTORS_FILE, np.ascontiguousarray(vectors, np.float32))


def load_vectors(directory: Path) -> FloatArray:
    """Map the vectors an index was saved with.

    Raises:
        ArtifactError: When the file is missing or is not what `save` wrote.
    """
    try:
        vectors = np.load(directory / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / VECTORS_FILE} cannot be read: {error}") from None
    if vectors.ndim != 2 or vectors.dtype != np.float32:
        raise ArtifactError(f"{directory / VECTORS_FILE} holds {vectors.dtype} {vectors.shape}, not float32 (N, D)")
    # A plain view: the memmap subclass costs microseconds at each indexing.
    return np.asarray(vectors)


def read_settings(directory: Path) -> dict[str, Any]:
    """The content of `index.json`: the factory, and what else the index wrote down.

    Raises:
        ArtifactError: When the file is missing or not what an index saved.
    """
    try:
        settings: dict[str, Any] = json.loads((directory / INDEX_FILE).read_text())
        settings["factory"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{directory} holds no index: {INDEX_FILE} cannot be read: {error!r}") from None
    return settings


def _mask(scores: FloatArray, exclude: Ragged, start: int, stop: int, subset: IntArray | None) -> None:
    """Set excluded scores of queries start … stop to minus infinity, in place."""
    values = exclude.values[exclude.offsets[start] : exclude.offsets[stop]]
    queries = np.repeat(np.arange(stop - start), exclude.lengths[start:stop])
    if subset is None:
        scores[queries, values] = -np.inf
        return
    place_of_row = np.full(int(subset[-1]) + 1 if len(subset) else 0, -1, np.int64)
    place_of_row[subset] = np.arange(len(subset))
    known = values < len(place_of_row)
    places = place_of_row[values[known]]
    scores[queries[known][places >= 0], places[places >= 0]] = -np.inf
