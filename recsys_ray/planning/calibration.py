"""How fast this machine searches: a micro-benchmark of some seconds, from which larger indexes are predicted.

One core, one query a call. Scans are measured at sizes within and past the cache, graphs and lists on small samples.
"""

import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from recsys_ray.core.arrays import FloatArray
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import FaissIndex, build, import_faiss
from recsys_ray.index.spec import candidates, num_lists
from recsys_ray.planning.speeds import Curve, Goal, Hnsw, Ivf, Need, Speeds, family

_SCANNED = (2_000, 20_000)  # vectors of a scan: in the cache, at its edge; the third size is past it
_PAST_CACHE_BYTES = 100 << 20
_GROWTH = 4  # two sizes say how what recall takes grows: one is so many times the other
_SAMPLE, _GRAPH_SAMPLE = 24_000, 12_000  # building a graph takes long
_QUERIES = 64
_LATENT = 24  # dimensions in which the made vectors differ; trained towers have about as many
_ROUND_S = 0.15
_TIE = 1e-5


def calibrate(dim: int, k: int = 100, recall: float = 0.99) -> Speeds:
    """Measure this machine.

    Args:
        dim: D, length of the vectors.
        k: Results of a search.
        recall: recall@k that settings must hold.

    Raises:
        MissingExtraError: When FAISS is not installed.
    """
    vectors = made_vectors(max(100_000, _PAST_CACHE_BYTES // (4 * dim)), dim)
    exact, jitter = _exact_curve(vectors, k)
    codes = {"flat": "Flat", "fp16": "SQfp16", "sq8": "SQ8", "pq": f"PQ{max(1, dim // 2)}x4fs"}
    raw = {name: _raw_curve(vectors, factory, k) for name, factory in codes.items()}
    sample, graph = made_vectors(_SAMPLE, dim), made_vectors(_GRAPH_SAMPLE, dim)
    goal = Goal(k, recall)
    names = {family(factory): factory for factory, _ in candidates(_SAMPLE, dim, k)}
    found = {name: _need(graph if name == "HNSW" else sample, name, goal) for name in names if name != "SQfp"}
    return Speeds(
        dim,
        goal,
        exact,
        **raw,
        finish_s=_finish(vectors, k),
        read=_read_curve(vectors),
        ivf=_measure_ivf(found["IVF,SQ"][1], k, raw["sq8"].rate(_SAMPLE)),
        hnsw=_measure_hnsw(found["HNSW"][1], k),
        needs={name: need for name, (need, _) in found.items()},
        jitter=jitter,
    )


def made_vectors(num_items: int, dim: int, seed: int = 0) -> FloatArray:
    """(N, D) unit vectors like those of trained towers: groups of like items in few dimensions, and noise in all."""
    rng = np.random.default_rng(seed)
    latent = min(_LATENT, dim)
    groups = rng.standard_normal((max(1, num_items // 50), latent), dtype=np.float32)
    mixing = np.random.default_rng(1).standard_normal((latent, dim), dtype=np.float32) / np.sqrt(latent)
    vectors = np.empty((num_items, dim), np.float32)
    for start in range(0, num_items, 100_000):
        count = min(100_000, num_items - start)
        own = groups[rng.integers(0, len(groups), count)] + 0.7 * rng.standard_normal((count, latent), np.float32)
        block = own @ mixing + 0.1 * rng.standard_normal((count, dim), np.float32)
        vectors[start : start + count] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def made_queries(vectors: FloatArray, count: int = _QUERIES) -> FloatArray:
    """(Q, D) queries near some of the vectors, as users are near what they met."""
    rng = np.random.default_rng(2)
    chosen = vectors[rng.integers(0, len(vectors), count)]
    moved = chosen + rng.standard_normal(chosen.shape, np.float32) * 0.5 / np.sqrt(chosen.shape[1])
    return np.ascontiguousarray(moved / np.linalg.norm(moved, axis=1, keepdims=True), np.float32)


def measure_search(search: Callable[[FloatArray], object], queries: FloatArray) -> tuple[float, float]:
    """Median and 95th percentile of the seconds of searches with one query each."""
    for row in range(2):
        search(queries[row : row + 1])
    taken: list[float] = []
    while len(taken) < 7 or (sum(taken) < _ROUND_S and len(taken) < 300):
        row = len(taken) % len(queries)
        started = time.perf_counter()
        search(queries[row : row + 1])
        taken.append(time.perf_counter() - started)
    return float(np.median(taken)), float(np.quantile(taken, 0.95))


def _holds_at(vectors: FloatArray, name: str, goal: Goal) -> tuple[float, FaissIndex]:
    """The setting of the project's sweep, and between its values, at which recall reaches the goal; and the index."""
    factory, sweep = next(one for one in candidates(len(vectors), vectors.shape[1], goal.k) if family(one[0]) == name)
    if name.startswith("IVF"):
        # A small sample has few lists, of which the goal may take more than the quarter at which the project stops.
        sweep = tuple(f"nprobe={2**power}" for power in range(num_lists(len(vectors)).bit_length()))
    index, queries = build(vectors, factory), made_queries(vectors)
    least = ExactIndex(vectors).search(queries, goal.k)[1][:, -1:] - _TIE
    before: tuple[float, float] | None = None
    for parameters in sweep:
        at = index.with_parameters(parameters)
        now = (math.log2(float(parameters.split("=")[1])), _recall(at, queries, least, goal.k))
        if now[1] >= goal.recall:
            return 2.0 ** (now[0] if before is None else _between(before, now, goal.recall)), index
        before = now
    return math.inf, index


def _recall(index: FaissIndex, queries: FloatArray, least: FloatArray, k: int) -> float:
    """Of the index itself: what the project's search cannot fill it would answer exactly."""
    rows = index.index.search(queries, k)[1]
    scores = np.einsum("qkd,qd->qk", index.vectors[rows], queries)
    return float(((rows >= 0) & (scores >= least)).mean())


def _between(before: tuple[float, float], now: tuple[float, float], recall: float) -> float:
    """Where between two settings (as logarithms) the share that is missed, as a logarithm, crosses the target."""
    missed = [math.log(max(1e-4, 1 - value)) for value in (before[1], now[1])]
    if missed[0] <= missed[1]:
        return now[0]
    share = (missed[0] - math.log(max(1e-4, 1 - recall))) / (missed[0] - missed[1])
    return before[0] + min(1.0, max(0.0, share)) * (now[0] - before[0])


def _need(vectors: FloatArray, name: str, goal: Goal) -> tuple[Need, FaissIndex]:
    """What holds the recall, at two sizes; and the index of the larger."""
    size = len(vectors)
    small, _ = _holds_at(vectors[: size // _GROWTH], name, goal)
    large, index = _holds_at(vectors, name, goal)
    if math.isinf(large) or math.isinf(small):
        return Need(size, math.inf, 0.0), index
    return Need(size, large, min(0.5, math.log(max(1.0, large / small)) / math.log(_GROWTH))), index


def _sizes(vectors: FloatArray) -> tuple[int, ...]:
    return (*_SCANNED, len(vectors))


def _exact_curve(vectors: FloatArray, k: int) -> tuple[Curve, float]:
    """Seconds of the exact index, and how much longer than the median the slow searches are."""
    taken = []
    for size in _sizes(vectors):
        index = ExactIndex(vectors[:size])
        taken.append(measure_search(partial(index.search, k=k), made_queries(vectors)))
    jitter = float(np.median([slow / median for median, slow in taken]))
    return Curve(_sizes(vectors), tuple(median for median, _ in taken)), jitter


def _raw_curve(vectors: FloatArray, factory: str, k: int) -> Curve:
    """Seconds of the FAISS call alone."""
    return Curve(_sizes(vectors), tuple(_raw(build(vectors[:size], factory), k) for size in _sizes(vectors)))


def _raw(index: FaissIndex, k: int) -> float:
    import_faiss().omp_set_num_threads(1)
    return measure_search(lambda query: index.index.search(query, k), made_queries(index.vectors))[0]


def _finish(vectors: FloatArray, k: int) -> float:
    index = build(vectors[: _SCANNED[0]], "SQfp16")
    whole, _ = measure_search(lambda query: index.search(query, k), made_queries(index.vectors))
    return max(0.0, whole - _raw(index, k))


def _read_curve(vectors: FloatArray) -> Curve:
    """Seconds of reading and scoring one vector at a random place; past the cache, what memory costs."""
    rng = np.random.default_rng(4)
    seconds = []
    for size in _sizes(vectors):
        taken = []
        for rows in rng.integers(0, size, (16, 2000)):
            started = time.perf_counter()
            vectors[rows].sum()
            taken.append((time.perf_counter() - started) / len(rows))
        seconds.append(float(np.median(taken)))
    return Curve((*_sizes(vectors), 10 * len(vectors)), (*seconds, seconds[-1]))


def _measure_ivf(index: FaissIndex, k: int, code_s: float) -> Ivf:
    """From a search of few lists and one of many: what opening a list costs, beside scanning its codes."""
    stats, queries = import_faiss().cvar.indexIVF_stats, made_queries(index.vectors)
    probes = (4, 64)
    seconds, scanned = [], []
    for probe in probes:
        at = index.with_parameters(f"nprobe={probe}")
        seconds.append(_raw(at, k))
        stats.reset()
        at.index.search(queries, k)
        scanned.append(stats.ndis / len(queries))
    one_list = (seconds[1] - seconds[0]) / (probes[1] - probes[0])
    codes = (scanned[1] - scanned[0]) / (probes[1] - probes[0])
    average = len(index.vectors) / num_lists(len(index.vectors))
    return Ivf(max(0.0, one_list - codes * code_s), codes / average)


def _measure_hnsw(index: FaissIndex, k: int) -> Hnsw:
    stats, queries, width = import_faiss().cvar.hnsw_stats, made_queries(index.vectors), 256
    at = index.with_parameters(f"efSearch={width}")
    seconds = _raw(at, k)
    stats.reset()
    at.index.search(queries, k)
    distances = stats.ndis / len(queries)
    return Hnsw(len(index.vectors), distances / width, seconds / distances)
