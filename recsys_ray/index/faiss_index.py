"""An approximate FAISS index that still gives k results whenever k allowed items exist.

Douze et al. 2024, "The Faiss library". The raw vectors stay beside the index: results are scored exactly with them,
filters are answered by exact search on what they allow, unless the index was measured to hold the recall that is asked
of it under filters in less time, and queries that the index cannot fill are answered by exact search too.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ArtifactError, ConfigError, MissingExtraError
from recsys_ray.index.costs import Cost, Costs, fastest_ns
from recsys_ray.index.exact import INDEX_FILE, ExactIndex, load_vectors, read_settings, rescored, save_vectors
from recsys_ray.index.filter_plans import INSIDE, WIDEN, Plan, cheapest, fetch_for, inside_parameters, measure
from recsys_ray.index.subset import Allowed, Found, Subset, by_subset

FAISS_FILE = "index.faiss"
_TRAIN_SEED = 1234
# Fetching grows at least as fast as sorting what was fetched; past this many exact search is no dearer anywhere.
_MAX_FETCH = 4096


@dataclass(frozen=True)
class Calibration:
    """What this index was measured to cost, beside the exact ways.

    Attributes:
        exact: The exact ways.
        search: One query, a unit being one result: `once_ns` a query, `each_ns` a result of it.
        plans: What filters cost and lose inside the index, by the share they allow.
    """

    exact: Costs
    search: Cost
    plans: tuple[Plan, ...]

    @classmethod
    def parse(cls, document: dict[str, Any]) -> "Calibration":
        """From what `asdict` made of it; TypeError or KeyError where it is something else."""
        plans = tuple(Plan(**plan) for plan in document["plans"])
        return cls(Costs.parse(document["exact"]), Cost(**document["search"]), plans)

    def search_ns(self, fetch: int) -> float:
        """Nanoseconds of a query that takes so many results."""
        return self.search.once_ns + fetch * self.search.each_ns


@dataclass(frozen=True)
class FaissIndex:
    """A built FAISS index and the vectors it was built from.

    Attributes:
        index: The `faiss.Index`, inner product.
        vectors: (N, D) float32, the same rows.
        factory: The factory string it was built with.
        parameters: Search-time settings in FAISS's own notation, e.g. ``"nprobe=16"``; empty where there are none.
        threads: OpenMP threads of one search call.
        filtered_recall: Recall that a search under a filter must hold; 1 is exact.
        calibration: What it costs; None where that was not measured.
    """

    index: Any
    vectors: FloatArray
    factory: str
    parameters: str = ""
    threads: int = 1
    filtered_recall: float = 1.0
    calibration: Calibration | None = None

    @property
    def exact(self) -> ExactIndex:
        """Exact search over the same vectors."""
        return ExactIndex(self.vectors, None if self.calibration is None else self.calibration.exact)

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) exact inner products; the caller bounds B."""
        return self.exact.scores(queries)

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: Allowed | None = None
    ) -> Found:
        """As `ExactIndex.search`, up to the recall of the index, or under a filter `filtered_recall`."""
        queries = np.ascontiguousarray(queries, np.float32)
        if allowed is None:
            return self._everywhere(queries, k, exclude)

        def search(part: FloatArray, excluded: Ragged | None, subset: Subset | None) -> Found:
            if subset is None:
                return self._everywhere(part, k, excluded)
            return self._among(part, k, excluded, subset)

        return by_subset(search, queries, k, exclude, allowed)

    def with_parameters(self, parameters: str) -> "FaissIndex":
        """The same index searched with other settings. It shares the FAISS object: use one of the two at a time."""
        _set_parameters(self.index, parameters)
        return replace(self, parameters=parameters, calibration=None)

    def calibrated(self, queries: FloatArray, k: int, filtered_recall: float = 1.0) -> "FaissIndex":
        """The same index with its costs measured, and what filters cost where they need not be exact.

        Args:
            queries: (Q, D) as they will come.
            k: How many results.
            filtered_recall: See the attribute.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        exact = self.exact.calibrated().costs or Costs.typical(self.vectors.shape[1])
        if len(queries) == 0:
            return replace(self, filtered_recall=filtered_recall, calibration=Calibration(exact, Cost(0, 0), ()))
        few, many = (self._fetch_ns(queries, min(fetch, len(self.vectors))) for fetch in (k, 4 * k))
        each = max(many - few, 0.0) / (3 * k)
        costed = Calibration(exact, Cost(max(few - k * each, 0.0), each), ())
        ready = replace(self, filtered_recall=filtered_recall, calibration=costed)
        if filtered_recall == 1:
            return ready
        plans = measure(ready.exact, queries, k, {WIDEN: ready.widen, INSIDE: ready.inside})
        return replace(ready, calibration=replace(costed, plans=plans))

    def _fetch_ns(self, queries: FloatArray, count: int) -> float:
        return fastest_ns(lambda: self._fetch(queries, count)) / len(queries)

    def save(self, directory: Path) -> None:
        """Write `index.faiss`, the vectors and `index.json`."""
        save_vectors(directory, self.vectors)
        import_faiss().write_index(self.index, str(directory / FAISS_FILE))
        settings = {
            "factory": self.factory,
            "parameters": self.parameters,
            "threads": self.threads,
            "filtered_recall": self.filtered_recall,
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }
        (directory / INDEX_FILE).write_text(json.dumps(settings) + "\n")

    def inside(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset) -> Found | None:
        """Let FAISS skip what the filter forbids as it goes; None where this kind of index cannot."""
        parameters = inside_parameters(self.index, subset)
        if parameters is None:
            return None
        fetch = k + _most_excluded(exclude)
        return self._finish(queries, k, self._fetch(queries, fetch, parameters), exclude, subset)

    def widen(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset) -> Found | None:
        """Take more results than asked for and drop those that the filter forbids; None where it would be too many."""
        fetch = min(fetch_for(k, subset) + _most_excluded(exclude), len(self.vectors))
        if fetch > _MAX_FETCH:
            return None
        rows = self._fetch(queries, fetch)
        rows = np.where((rows >= 0) & subset.mask[rows], rows, -1)
        return self._finish(queries, k, rows, exclude, subset)

    def _everywhere(self, queries: FloatArray, k: int, exclude: Ragged | None) -> Found:
        """Without a filter: what was seen is fetched along and dropped, unless exact search costs less than that."""
        fetch = min(k + _most_excluded(exclude), len(self.vectors))
        if fetch > k and self._exact_is_cheaper(len(queries), fetch):
            return self.exact.search_among(queries, k, exclude, None)
        return self._finish(queries, k, self._fetch(queries, fetch), exclude, None)

    def _exact_is_cheaper(self, num_queries: int, fetch: int) -> bool:
        if self.calibration is None:
            return fetch > _MAX_FETCH
        return self.exact.search_ns(num_queries, None) < num_queries * self.calibration.search_ns(fetch)

    def _among(self, queries: FloatArray, k: int, exclude: Ragged | None, subset: Subset) -> Found:
        """Under a filter: exactly, or inside the index where that was measured to be good enough and takes less."""
        if self.filtered_recall < 1 and self.calibration is not None:
            exact_ns = self.exact.search_ns(len(queries), subset) / len(queries)
            ways = {WIDEN: self.widen, INSIDE: self.inside}
            plan = cheapest(self.calibration.plans, subset.share, self.filtered_recall)
            found = ways[plan.way](queries, k, exclude, subset) if plan and plan.ns < exact_ns else None
            if found is not None:
                return found
        return self.exact.search_among(queries, k, exclude, subset)

    def _fetch(self, queries: FloatArray, count: int, parameters: Any | None = None) -> IntArray:
        """(B, count) rows as FAISS finds them, -1 where it finds fewer."""
        faiss = import_faiss()
        # OpenMP keeps the thread count per calling thread, so it is set where the search runs.
        faiss.omp_set_num_threads(self.threads)
        rows = np.empty((len(queries), count), np.int64)
        scores = np.empty((len(queries), count), np.float32)
        pointer = faiss.swig_ptr
        # The call below FAISS's own Python wrapper, whose checks have been made here: it takes longer than ours.
        self.index.search_c(len(queries), pointer(queries), count, pointer(scores), pointer(rows), parameters)
        return rows

    def _finish(
        self, queries: FloatArray, k: int, rows: IntArray, exclude: Ragged | None, subset: Subset | None
    ) -> Found:
        """From fetched rows to the k best by exact score; queries with too few of them are answered by exact search."""
        if exclude is not None and len(exclude.values):
            rows = _without(rows, exclude, len(self.vectors))
        rows, scores = rescored(queries, self.vectors, rows)
        if rows.shape[1] > k:
            rows, scores = rows[:, :k], scores[:, :k]
        elif rows.shape[1] < k:
            missing = ((0, 0), (0, k - rows.shape[1]))
            rows, scores = np.pad(rows, missing, constant_values=-1), np.pad(scores, missing, constant_values=-np.inf)
        if k and rows[:, -1].min(initial=0) < 0:
            short = np.flatnonzero(rows[:, -1] < 0)
            excluded = None if exclude is None else exclude.take(short)
            rows[short], scores[short] = self.exact.search_among(queries[short], k, excluded, subset)
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
        built = FaissIndex(
            index,
            vectors,
            settings["factory"],
            settings["parameters"],
            int(settings["threads"]),
            float(settings["filtered_recall"]),
            settings["calibration"] and Calibration.parse(settings["calibration"]),
        )
        _set_parameters(index, built.parameters)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise ArtifactError(f"the index in {directory} cannot be read: {error}") from None
    if (index.ntotal, index.d) != vectors.shape:
        raise ArtifactError(f"{directory}: the index holds {index.ntotal} x {index.d}, the vectors {vectors.shape}")
    return built


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


def _without(rows: IntArray, exclude: Ragged, num_rows: int) -> IntArray:
    """Fetched rows with -1 in the place of each query's excluded ones, however many there are."""
    banned = np.sort(exclude.values + exclude.row_of_value * num_rows)
    wanted = rows + np.arange(len(rows), dtype=np.int64)[:, None] * num_rows
    places = np.minimum(np.searchsorted(banned, wanted), len(banned) - 1)
    return np.where(banned[places] == wanted, -1, rows)


def _most_excluded(exclude: Ragged | None) -> int:
    return 0 if exclude is None or len(exclude.values) == 0 else int(exclude.lengths.max())


def _set_parameters(index: Any, parameters: str) -> None:
    if parameters:
        import_faiss().ParameterSpace().set_index_parameters(index, parameters)


def _quiet(faiss: ModuleType, index: Any) -> None:
    """Fix the seed of coarse clustering and keep it from warning about few training points: recall is measured."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexIVF):
        inner.cp.seed = _TRAIN_SEED
        inner.cp.min_points_per_centroid = 1
