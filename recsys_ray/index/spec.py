"""Choose and tune the index by what it measures: recall against the exact oracle, and speed, on held-out queries."""

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from pydantic import Field, model_validator

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.config import Config, execution
from recsys_ray.index.exact import EXACT, ExactIndex, load_exact, load_vectors, read_settings
from recsys_ray.index.faiss_index import FaissIndex, build, import_faiss, load_faiss
from recsys_ray.index.prefix import PREFIX_FOLDER, PrefixIndex, cut, require_dim
from recsys_ray.index.subset import Allowed, Found

AUTO = "auto"
_TIE = 1e-5
_ONE_SIDED_95 = 1.645
_CALIBRATION_QUERIES = 50
_MIN_PQ_ITEMS = 1000  # FAISS wants 39 training points for each of the 16 centroids


class Index(Protocol):
    """What every index answers; see `ExactIndex`."""

    @property
    def vectors(self) -> FloatArray:
        """(N, D) the vectors behind it."""
        ...

    @property
    def factory(self) -> str:
        """What it was built by."""
        ...

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) exact inner products."""
        ...

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: Allowed | None = None
    ) -> Found:
        """(B, k) rows padded with -1, and their exact scores."""
        ...

    def save(self, directory: Path) -> None:
        """Write all that `load_index` needs."""
        ...


class IndexConfig(Config):
    """How the index over a space's vectors is chosen.

    Attributes:
        factory: "auto" measures candidates and takes the fastest that holds the target; "exact" searches all vectors
            without FAISS; anything else is a FAISS factory string, taken as it is.
        parameters: Search-time settings of a factory given by hand, e.g. "nprobe=16".
        target_recall: The recall@k that "auto" must hold, by the lower 95 % bound over the held-out queries.
        filtered_recall: The recall@k that a search under a filter must hold. 1 answers every filter exactly; below, an
            approximate index answers the wide ones itself where that was measured to hold and to take less.
        dim: Search by the first so many numbers of each vector, at unit length again, and cut queries the same way;
            null takes all. Vectors trained with `training.matryoshka` lose little by it. It holds for every channel
            that has an index.
        k: How many results recall is measured over.
        exact_below: Catalogues smaller than this are searched exactly whatever was measured.
        max_queries: How many held-out queries are measured at most.
        threads: OpenMP threads of building and of one search call.
    """

    factory: str = Field(AUTO, min_length=1)
    parameters: str = ""
    target_recall: float = Field(0.99, gt=0, le=1)
    filtered_recall: float = Field(1.0, gt=0, le=1)
    dim: int | None = Field(None, ge=1)
    k: int = Field(100, ge=1)
    exact_below: int = Field(20_000, ge=0)
    max_queries: int = Field(500, ge=1)
    threads: int = execution(1, ge=1)

    @model_validator(mode="after")
    def _parameters_need_a_factory(self) -> Self:
        if self.parameters and self.factory in (AUTO, EXACT):
            raise ValueError(f"parameters only beside a FAISS factory string; factory={self.factory} takes none")
        return self


@dataclass(frozen=True)
class Measured:
    """One candidate index as measured.

    Attributes:
        factory: FAISS factory string, or "exact".
        parameters: Search-time settings.
        recall: recall@k against the exact oracle; a result as good as the oracle's k-th counts.
        least_recall: What the recall of other queries of the kind is at least, with 95 % confidence.
        queries_per_s: One query a call, on `threads` threads.
        num_bytes: Size of the index itself, without the vectors kept beside it.
        build_s: Seconds to train and fill.
    """

    factory: str
    parameters: str
    recall: float
    least_recall: float
    queries_per_s: float
    num_bytes: int
    build_s: float


@dataclass(frozen=True)
class Choice:
    """The index that was chosen, why, and everything that was measured.

    Attributes:
        index: Ready to search.
        measured: Each candidate, in the order tried; empty when the factory was given and nothing was measured.
        note: One sentence for people.
        config: What was asked for.
    """

    index: Index
    measured: tuple[Measured, ...]
    note: str
    config: IndexConfig

    def summary(self) -> dict[str, Any]:
        """As JSON values, for manifests and reports."""
        chosen = [row for row in self.measured if self._is_chosen(row)]
        return {
            "factory": self.index.factory,
            "parameters": _parameters(self.index),
            "dim": self.index.dim if isinstance(self.index, PrefixIndex) else self.index.vectors.shape[1],
            "k": self.config.k,
            "target_recall": self.config.target_recall,
            "filtered_recall": self.config.filtered_recall,
            "recall": chosen[0].recall if chosen else None,
            "queries_per_s": chosen[0].queries_per_s if chosen else None,
            "note": self.note,
            "measured": [{**asdict(row), "chosen": self._is_chosen(row)} for row in self.measured],
        }

    def _is_chosen(self, row: Measured) -> bool:
        return (row.factory, row.parameters) == (self.index.factory, _parameters(self.index))


def choose(vectors: FloatArray, held_out: FloatArray, config: IndexConfig) -> Choice:
    """Build the index that `config` asks for. With `dim` the oracle too holds the vectors that are cut.

    Args:
        vectors: (N, D) float32.
        held_out: (Q, D) queries as they will come, none of which the vectors were trained on where possible.
        config: See `IndexConfig`.

    Raises:
        ConfigError: When a factory given by hand or `dim` does not fit the vectors.
        MissingExtraError: When FAISS is needed and not installed.
    """
    if config.dim is None:
        return _choose(vectors, held_out, config)
    require_dim(config.dim, vectors)
    choice = _choose(cut(vectors, config.dim), cut(held_out, config.dim), config)
    return replace(choice, index=PrefixIndex(vectors, choice.index))


def _choose(vectors: FloatArray, held_out: FloatArray, config: IndexConfig) -> Choice:
    vectors = np.ascontiguousarray(vectors, np.float32)
    # A query of zeros (nothing known of the user) scores all items alike: any index would seem to find them all.
    held_out = held_out[held_out.any(1)]
    oracle = ExactIndex(vectors).calibrated()
    measure = _Measure(oracle, _spread(held_out, config.max_queries), min(config.k, len(vectors)))
    if config.factory == EXACT:
        return Choice(oracle, (measure.row(oracle, 0.0),), "exact search was asked for", config)
    if config.factory != AUTO:
        started = time.perf_counter()
        given = build(vectors, config.factory, config.parameters, config.threads)
        row = measure.row(given, time.perf_counter() - started)
        given = given.calibrated(_spread(measure.queries, _CALIBRATION_QUERIES), measure.k, config.filtered_recall)
        return Choice(given, (row,), f"{config.factory} was asked for", config)
    measured = [measure.row(oracle, 0.0)]
    best: tuple[float, str, str] = (measured[0].queries_per_s, EXACT, "")
    for factory, sweep in candidates(len(vectors), vectors.shape[1], measure.k):
        rows = _try(vectors, factory, sweep, measure, config)
        measured += rows
        best = max([best, *((r.queries_per_s, r.factory, r.parameters) for r in rows if _holds(r, config))])
    return _decide(measure, measured, best, config)


def load_index(directory: Path) -> Index:
    """Read an index that `save` wrote; the caller has verified the files' hashes.

    Raises:
        ArtifactError: When a file is missing or not readable.
        MissingExtraError: When the index is a FAISS one and FAISS is not installed.
    """
    # What the index is stands in a file of the manifest: a FAISS file that was put beside it is never opened.
    settings = read_settings(directory)
    if "dim" in settings:
        return PrefixIndex(load_vectors(directory), load_index(directory / PREFIX_FOLDER))
    if settings["factory"] == EXACT:
        return load_exact(directory)
    return load_faiss(directory)


@dataclass(frozen=True)
class _Measure:
    """The held-out queries, their true results, and how a candidate is measured with them."""

    oracle: ExactIndex
    queries: FloatArray
    k: int

    def row(self, index: Index, build_s: float) -> Measured:
        num_bytes = self.oracle.vectors.nbytes if isinstance(index, ExactIndex) else _num_bytes(index)
        recall, least = self._recall(index)
        return Measured(index.factory, _parameters(index), recall, least, self._speed(index), num_bytes, build_s)

    def _recall(self, index: Index) -> tuple[float, float]:
        """The mean over the queries, and its lower bound: settings that just hold here would not hold elsewhere."""
        if len(self.queries) == 0 or isinstance(index, ExactIndex):
            return 1.0, 1.0
        least = self.oracle.search(self.queries, self.k)[1][:, -1:]
        # The index scores its results exactly, so a result as good as the true k-th is a right one, whichever twin.
        recalls = (index.search(self.queries, self.k)[1] >= least - _TIE).mean(1)
        mean = float(recalls.mean())
        return mean, mean - _ONE_SIDED_95 * float(recalls.std()) / len(recalls) ** 0.5

    def _speed(self, index: Index) -> float:
        """Median rate of three rounds of single queries."""
        sample = _spread(self.queries, max(8, min(100, 10_000_000 // max(len(self.oracle.vectors), 1))))
        if len(sample) == 0:
            return 0.0
        rates = []
        for _ in range(3):
            started = time.perf_counter()
            for row in range(len(sample)):
                index.search(sample[row : row + 1], self.k)
            rates.append(len(sample) / (time.perf_counter() - started))
        return float(np.median(rates))


def _try(
    vectors: FloatArray, factory: str, sweep: tuple[str, ...], measure: _Measure, config: IndexConfig
) -> list[Measured]:
    """Measure one factory over its sweep, from fast to thorough, until it holds the target."""
    started = time.perf_counter()
    index = build(vectors, factory, threads=config.threads)
    build_s = time.perf_counter() - started
    rows: list[Measured] = []
    for parameters in sweep:
        rows.append(measure.row(index.with_parameters(parameters), build_s))
        if _holds(rows[-1], config):
            break
    return rows


def _decide(measure: _Measure, measured: list[Measured], best: tuple[float, str, str], config: IndexConfig) -> Choice:
    oracle = measure.oracle
    num_items = len(oracle.vectors)
    approximate = [row for row in measured[1:] if _holds(row, config)]
    if num_items < config.exact_below:
        note = f"{num_items} items are fewer than index.exact_below={config.exact_below}: exact search"
        return Choice(oracle, tuple(measured), note, config)
    if not approximate:
        note = f"no candidate holds recall@{config.k} >= {config.target_recall}: exact search"
        return Choice(oracle, tuple(measured), note, config)
    if best[1] == EXACT:
        return Choice(oracle, tuple(measured), "exact search was the fastest that holds the target", config)
    note = f"the fastest of {len(measured)} measured that holds recall@{config.k} >= {config.target_recall}"
    built = build(oracle.vectors, best[1], best[2], config.threads)
    ready = built.calibrated(_spread(measure.queries, _CALIBRATION_QUERIES), measure.k, config.filtered_recall)
    return Choice(ready, tuple(measured), note, config)


def candidates(num_items: int, dim: int, k: int) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Factory strings worth measuring, each with search settings from fast to thorough."""
    yield "SQfp16", ("",)
    lists = num_lists(num_items)
    # Fewer probes than fill 2k results would be answered by exact search; more than a quarter gain nothing on it.
    enough = 2 * k * lists / num_items
    probes = tuple(f"nprobe={probe}" for probe in (1, 2, 4, 8, 16, 32, 64, 128, 256) if enough <= probe <= lists // 4)
    if probes:
        yield f"IVF{lists},SQ8", probes
        yield f"IVF{lists},Flat", probes
    yield "HNSW32", tuple(f"efSearch={width}" for width in (64, 128, 256, 512))
    if dim % 2 == 0 and num_items >= _MIN_PQ_ITEMS:
        yield f"PQ{dim // 2}x4fs,RFlat", tuple(f"k_factor_rf={factor}" for factor in (1, 2, 4, 8, 16))


def num_lists(num_items: int) -> int:
    """How many lists an IVF candidate of so many items has."""
    lists = int(2 ** np.clip(np.round(np.log2(4 * np.sqrt(num_items))), 2, 16))
    return min(lists, max(1, num_items // 8))


def _holds(row: Measured, config: IndexConfig) -> bool:
    return row.least_recall >= config.target_recall


def _spread(queries: FloatArray, count: int) -> FloatArray:
    """At most `count` of the queries, evenly spread."""
    if len(queries) <= count:
        return np.ascontiguousarray(queries, np.float32)
    return np.ascontiguousarray(queries[np.linspace(0, len(queries) - 1, count).astype(np.int64)], np.float32)


def _parameters(index: Index) -> str:
    """The search-time settings it was built with; exact search has none."""
    inner = index.inner if isinstance(index, PrefixIndex) else index
    return inner.parameters if isinstance(inner, FaissIndex) else ""


def _num_bytes(index: Index) -> int:
    if not isinstance(index, FaissIndex):
        return index.vectors.nbytes
    return int(import_faiss().serialize_index(index.index).nbytes)
