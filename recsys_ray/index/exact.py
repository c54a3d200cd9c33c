"""Exact search over all vectors: the oracle for approximate indexes, and the index of small catalogues."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.index.costs import Costs, fitted
from recsys_ray.index.products import products
from recsys_ray.index.subset import Allowed, Found, Subset, by_subset
from recsys_ray.index.topk import top_k_columns

INDEX_FILE = "index.json"
VECTORS_FILE = "vectors.npy"
EXACT = "exact"
_BLOCK_BYTES = 64 << 20
_CALIBRATION_ROWS, _CALIBRATION_QUERIES, _CALIBRATION_SHARE = 100_000, 16, 0.25
_FEWEST_ROWS = 1000  # below, every way takes less time than a call
_ROUNDING = 2e-6  # of the query's length: more than a matrix product is off for vectors of unit length


@dataclass(frozen=True)
class ExactIndex:
    """Inner products with every vector that may come back, in the cheapest of three ways.

    Attributes:
        vectors: (N, D) float32.
        costs: What the ways cost here; typical ratios where nothing was measured.
    """

    vectors: FloatArray
    costs: Costs | None = None

    @property
    def factory(self) -> str:
        """The name it goes by in settings and reports."""
        return EXACT

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) inner products; the caller bounds B."""
        found: FloatArray = queries @ self.vectors.T
        return found

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: Allowed | None = None
    ) -> Found:
        """The k best items of each query, equal scores by rising row.

        Args:
            queries: (B, D).
            k: How many.
            exclude: For each query, rows that must not come back.
            allowed: The rows that may come back; None allows all.

        Returns:
            (B, k) rows padded with -1 and (B, k) scores padded with minus infinity.
        """

        def search(part: FloatArray, excluded: Ragged | None, subset: Subset | None) -> Found:
            return self.search_among(part, k, excluded, subset)

        return by_subset(search, queries, k, exclude, allowed)

    def search_among(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset | None) -> Found:
        """As `search`, all queries under one set."""
        if subset is None or subset.size == len(self.vectors):
            return self._scan(queries, k, exclude, None)
        ways = {"pick": self._pick, "gather": self._gather, "scan": self._scan}
        return ways[self._cheapest(len(queries), subset)[0]](queries, k, exclude, subset)

    def search_ns(self, num_queries: int, subset: Subset | None) -> float:
        """Nanoseconds that `search_among` takes, by the costs."""
        if subset is None or subset.size == len(self.vectors):
            return self._costs.scanned.ns(len(self.vectors), num_queries)
        return self._cheapest(num_queries, subset)[1]

    def calibrated(self) -> "ExactIndex":
        """The same index with its costs measured on its own vectors, in about a tenth of a second."""
        part = ExactIndex(self.vectors[:_CALIBRATION_ROWS])
        count = len(part.vectors)
        if count < _FEWEST_ROWS:
            return self
        subset = Subset(np.random.default_rng(0).random(count) < _CALIBRATION_SHARE)
        queries, k = part.vectors[np.linspace(0, count - 1, _CALIBRATION_QUERIES).astype(np.int64)], min(100, count)
        costs = Costs(
            fitted(lambda number: part._pick(queries[:number], k, None, subset), subset.size, len(queries)),
            fitted(lambda number: part._gather(queries[:number], k, None, subset), subset.size, len(queries)),
            fitted(lambda number: part._scan(queries[:number], k, None, subset), count, len(queries)),
        )
        return ExactIndex(self.vectors, costs)

    def save(self, directory: Path) -> None:
        """Write the vectors and `index.json`."""
        save_vectors(directory, self.vectors)
        costs = None if self.costs is None else self.costs.document()
        (directory / INDEX_FILE).write_text(json.dumps({"factory": EXACT, "costs": costs}) + "\n")

    @property
    def _costs(self) -> Costs:
        return self.costs or Costs.typical(self.vectors.shape[1])

    def _cheapest(self, num_queries: int, subset: Subset) -> tuple[str, float]:
        costs, size = self._costs, subset.size
        ways = {
            "pick": costs.picked.ns(size, num_queries),
            "gather": costs.gathered.ns(size, num_queries),
            "scan": costs.scanned.ns(len(self.vectors), num_queries),
        }
        way = min(ways, key=ways.__getitem__)
        return way, ways[way]

    def _pick(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset) -> Found:
        places = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), -np.inf, np.float32)
        for start, stop in blocks(len(queries), subset.size):
            wanted = np.broadcast_to(subset.rows, (stop - start, subset.size))
            found = products(queries[start:stop], self.vectors, wanted)
            _strike(found, exclude, start, stop, subset)
            places[start:stop], scores[start:stop] = top_k_columns(found, k)
        return _rows_at(places, subset), scores

    def _gather(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset) -> Found:
        vectors = self.vectors[subset.rows]
        places = np.full((len(queries), k), -1, np.int64)
        for start, stop in blocks(len(queries), subset.size):
            found = queries[start:stop] @ vectors.T
            _strike(found, exclude, start, stop, subset)
            places[start:stop] = _best_columns(found, queries[start:stop], vectors, k)
        return rescored(queries, self.vectors, _rows_at(places, subset))

    def _scan(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset | None) -> Found:
        rows = np.full((len(queries), k), -1, np.int64)
        for start, stop in blocks(len(queries), len(self.vectors)):
            found = queries[start:stop] @ self.vectors.T
            if subset is not None:
                found[:, ~subset.mask] = -np.inf
            _strike(found, exclude, start, stop, None)
            rows[start:stop] = _best_columns(found, queries[start:stop], self.vectors, k)
        return rescored(queries, self.vectors, rows)


def rescored(queries: FloatArray, vectors: FloatArray, rows: IntArray) -> Found:
    """(B, k) rows in the order of their exact scores, equal ones by rising row, and the scores.

    Scores are made here whichever way found the rows, so that they are the same to the last bit in a batch and alone.
    """
    if len(rows) == 1:
        found = products(queries, vectors, rows)
        best = np.lexsort((rows[0], -found[0]))
        return rows[:, best], found[:, best]
    scores = np.empty(rows.shape, np.float32)
    for start, stop in blocks(len(rows), rows.shape[1] * vectors.shape[1]):
        scores[start:stop] = products(queries[start:stop], vectors, rows[start:stop])
    order = np.lexsort((rows, -scores), axis=1)
    query = np.arange(len(rows))[:, None]
    return rows[query, order], scores[query, order]


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


def load_exact(directory: Path) -> ExactIndex:
    """Read what `ExactIndex.save` wrote.

    Raises:
        ArtifactError: When a file is missing or is not what `save` wrote.
    """
    costs = read_settings(directory)["costs"]
    try:
        return ExactIndex(load_vectors(directory), None if costs is None else Costs.parse(costs))
    except (TypeError, KeyError) as error:
        raise ArtifactError(f"the costs in {directory / INDEX_FILE} cannot be read: {error!r}") from None


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


def _strike(scores: FloatArray, exclude: Ragged | None, start: int, stop: int, subset: Subset | None) -> None:
    """Set excluded scores of queries start … stop to minus infinity, in place; columns are the subset's rows."""
    if exclude is None:
        return
    values = exclude.values[exclude.offsets[start] : exclude.offsets[stop]]
    if len(values) == 0:
        return
    queries = np.repeat(np.arange(stop - start), exclude.lengths[start:stop])
    if subset is None:
        scores[queries, values] = -np.inf
        return
    inside = subset.mask[values]
    scores[queries[inside], np.searchsorted(subset.rows, values[inside])] = -np.inf


def _best_columns(scores: FloatArray, queries: FloatArray, vectors: FloatArray, k: int) -> IntArray:
    """(B, k) columns with the best exact scores, padded with -1, from (B, n) scores by a matrix product.

    That rounds by where a row lies, so equal rows may score differently: those near the k-th are compared exactly.
    """
    columns, best = top_k_columns(scores, k)
    if k == 0:
        return columns
    least = best[:, -1] - _ROUNDING * np.linalg.norm(queries, axis=1)
    close = np.isfinite(least) & (np.count_nonzero(scores >= least[:, None], axis=1) > k)
    for query in np.flatnonzero(close).tolist():
        near = np.flatnonzero(scores[query] >= least[query])
        exact = products(queries[query : query + 1], vectors, near[None])[0]
        columns[query] = near[np.lexsort((near, -exact))[:k]]
    return columns


def _rows_at(places: IntArray, subset: Subset) -> IntArray:
    """The rows at places of the subset; -1 stays."""
    if subset.size == 0:
        return places
    rows: IntArray = np.where(places >= 0, subset.rows[places], -1)
    return rows
