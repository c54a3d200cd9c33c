"""An approximate FAISS index that still gives k results whenever k allowed items exist.

Douze et al. 2024, "The Faiss library". The raw vectors stay beside the index: results are scored exactly with them,
and queries that the index cannot fill are answered by exact search.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError, ConfigError, MissingExtraError
from recsys_ray.index.exact import INDEX_FILE, ExactIndex, blocks, load_vectors, read_settings

FAISS_FILE = "index.faiss"
_TRAIN_SEED = 1234
# Below this share of allowed items, exact search on them costs less than over-fetching through the index.
_SUBSET_SHARE = 0.3
# Excluded items are fetched and dropped; past this many results the index has lost its advantage over exact search.
_MAX_FETCH = 2048


@dataclass(frozen=True)
class FaissIndex:
    """A built FAISS index and the vectors it was built from.

    Attributes:
        index: The `faiss.Index`, inner product.
        vectors: (N, D) float32, the same rows.
        factory: The factory string it was built with.
        parameters: Search-time settings in FAISS's own notation, e.g. ``"nprobe=16"``; empty where there are none.
        threads: OpenMP threads of one search call.
    """

    index: Any
    vectors: FloatArray
    factory: str
    parameters: str = ""
    threads: int = 1

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) exact inner products; the caller bounds B."""
        return ExactIndex(self.vectors).scores(queries)

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: BoolArray | None = None
    ) -> tuple[IntArray, FloatArray]:
        """As `ExactIndex.search`, up to the recall of the index; scores are exact."""
        exact = ExactIndex(self.vectors)
        share = 1.0 if allowed is None else float(allowed.mean())
        num_excluded = 0 if exclude is None or len(exclude) == 0 else int(exclude.lengths.max())
        fetch = min(
            int((k + num_excluded) / max(share, 1e-9) * 1.1) if share < 1 else k + num_excluded, len(self.vectors)
        )
        if share < _SUBSET_SHARE or fetch > max(_MAX_FETCH, 2 * k):
            return exact.search(queries, k, exclude, allowed)
        rows = self._drop(self._fetch(queries, fetch), exclude, allowed)
        rows, scores = self._best(queries, rows, k)
        return self._fill(exact, queries, rows, scores, exclude, allowed)

    def with_parameters(self, parameters: str) -> "FaissIndex":
        """The same index searched with other settings. It shares the FAISS object: use one of the two at a time."""
        _set_parameters(self.index, parameters)
        return replace(self, parameters=parameters)

    def save(self, directory: Path) -> None:
        """Write `index.faiss`, the vectors and `index.json`."""
        faiss = import_faiss()
        ExactIndex(self.vectors).save(directory)
        faiss.write_index(self.index, str(directory / FAISS_FILE))
        settings = {"factory": self.factory, "parameters": self.parameters, "threads": self.threads}
        (directory / INDEX_FILE).write_text(json.dumps(settings) + "\n")

    def _fetch(self, queries: FloatArray, count: int) -> IntArray:
        # OpenMP keeps the thread count per calling thread, so it is set where the search runs.
        import_faiss().omp_set_num_threads(self.threads)
        rows: IntArray = self.index.search(np.ascontiguousarray(queries, np.float32), count)[1]
        return rows

    def _drop(self, rows: IntArray, exclude: Ragged | None, allowed: BoolArray | None) -> IntArray:
        """The fetched rows with -1 in the place of what must not come back."""
        if allowed is not None:
            rows = np.where((rows >= 0) & allowed[rows], rows, -1)
        if exclude is None or len(exclude.values) == 0:
            return rows
        offset = np.arange(len(rows), dtype=np.int64)[:, None] * len(self.vectors)
        banned = exclude.values + exclude.row_of_value * len(self.vectors)
        return np.where(np.isin(rows + offset, banned), -1, rows)

    def _best(self, queries: FloatArray, rows: IntArray, k: int) -> tuple[IntArray, FloatArray]:
        """The k best of the fetched rows by exact score; equal scores by rising row."""
        scores = np.empty(rows.shape, np.float32)
        for start, stop in blocks(len(rows), rows.shape[1] * self.vectors.shape[1]):
            scores[start:stop] = np.einsum("bkd,bd->bk", self.vectors[rows[start:stop]], queries[start:stop])
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)[:, :k]
        best_rows, best_scores = np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1)
        missing = k - order.shape[1]
        if missing > 0:
            best_rows = np.pad(best_rows, ((0, 0), (0, missing)), constant_values=-1)
            best_scores = np.pad(best_scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        return best_rows, best_scores

    def _fill(
        self,
        exact: ExactIndex,
        queries: FloatArray,
        rows: IntArray,
        scores: FloatArray,
        exclude: Ragged | None,
        allowed: BoolArray | None,
    ) -> tuple[IntArray, FloatArray]:
        """Answer exactly the queries that got fewer rows than there are."""
        short = np.flatnonzero(rows[:, -1] < 0) if rows.shape[1] else np.zeros(0, np.int64)
        if len(short) == 0:
            return rows, scores
        excluded = None if exclude is None else exclude.take(short)
        rows[short], scores[short] = exact.search(queries[short], rows.shape[1], excluded, allowed)
        return rows, scores


def build(vectors: FloatArray, factory: str, parameters: str = "", threads: int = 1) -> FaissIndex:
    """Train and fill a FAISS index by its factory string.

    Args:
        vectors: (N, D) float32; inner products are searched.
        factory: See the FAISS wiki, "The index factory".
        parameters: Search-time settings, e.g. ``"nprobe=16"``.
        threads: OpenMP threads of building and of each later search call.

    Raises:
        ConfigError: When FAISS does not accept the factory string or the parameters for these vectors.
        MissingExtraError: When FAISS is not installed.
    """
    faiss = import_faiss()
    faiss.omp_set_num_threads(threads)
    vectors = np.ascontiguousarray(vectors, np.float32)
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        _quiet(faiss, index)
        index.train(vectors)
        index.add(vectors)
        _set_parameters(index, parameters)
    except (RuntimeError, AssertionError) as error:
        shape = f"{vectors.shape[0]} vectors of {vectors.shape[1]} dimensions"
        raise ConfigError(
            "index.factory", f"{factory} {parameters}".strip(), f"a FAISS factory string that takes {shape}", str(error)
        ) from None
    return FaissIndex(index, vectors, factory, parameters, threads)


def load_faiss(directory: Path) -> FaissIndex:
    """Read what `FaissIndex.save` wrote. The caller has verified the files' hashes: FAISS checks nothing itself.

    Raises:
        ArtifactError: When a file cannot be read or index and vectors do not fit each other.
        MissingExtraError: When FAISS is not installed.
    """
    faiss = import_faiss()
    vectors = load_vectors(directory)
    try:
        settings = read_settings(directory)
        index = faiss.read_index(str(directory / FAISS_FILE))
        built = FaissIndex(index, vectors, settings["factory"], settings["parameters"], int(settings["threads"]))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"the index in {directory} cannot be read: {error}") from None
    if (index.ntotal, index.d) != vectors.shape:
        raise ArtifactError(f"{directory}: the index holds {index.ntotal} x {index.d}, the vectors {vectors.shape}")
    return built.with_parameters(built.parameters)


def import_faiss() -> ModuleType:
    """The faiss module.

    Raises:
        MissingExtraError: When neither faiss-cpu nor faiss-gpu is installed.
    """
    try:
        import faiss
    except ImportError:
        raise MissingExtraError("An approximate index (FAISS)", "cpu") from None
    module: ModuleType = faiss
    return module


def _set_parameters(index: Any, parameters: str) -> None:
    if parameters:
        import_faiss().ParameterSpace().set_index_parameters(index, parameters)


def _quiet(faiss: ModuleType, index: Any) -> None:
    """Fix the seed of coarse clustering and keep it from warning about few training points: recall is measured."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexIVF):
        inner.cp.seed = _TRAIN_SEED
        inner.cp.min_points_per_centroid = 1
