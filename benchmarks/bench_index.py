"""The chosen index against FlatIP, hnswlib and usearch; its wrapper against the raw FAISS call; filters against Flat.

    python benchmarks/bench_index.py [--items 100000] [--dim 128]

The vectors are clustered as those of towers are: sub-clusters within clusters whose sizes fall as 1/rank, spread along
directions that matter less and less (1/sqrt(j)), at unit length. Queries are items with noise that none of the vectors
has. All that is compared runs interleaved in one process on one thread, median of seven rounds. hnswlib and usearch are
measured where they are installed.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import FaissIndex, import_faiss
from recsys_ray.index.spec import IndexConfig, choose
from recsys_ray.index.subset import Allowed, Subset

K, QUERIES, ROUNDS = 100, 100, 7
SHARES = (1.0, 0.5, 0.2, 0.1, 0.01, 0.001, 0.0001)
Search = Callable[[FloatArray], Any]


class Targets:
    """Prints each target and counts those met."""

    def __init__(self) -> None:
        self.met = self.total = 0

    def check(self, name: str, peer: float, ours: float, ratio: float, target: str, met: bool) -> None:
        """One line: peer, ours, ratio, and whether that is enough."""
        self.total, self.met = self.total + 1, self.met + met
        verdict = "met" if met else "MISSED"
        print(f"{name}: peer {peer:.4g} ours {ours:.4g} ratio {ratio:.3f} (target {target}) {verdict}", flush=True)


def make_vectors(count: int, dim: int, queries: int) -> tuple[FloatArray, FloatArray]:
    """(N, D) items and (Q, D) queries, see the module."""
    rng = np.random.default_rng(0)
    scale = 1 / np.sqrt(np.arange(1, dim + 1))
    centres = rng.standard_normal((200, dim)) * scale
    sizes = 1 / np.arange(1, 201)
    finer = centres[rng.choice(200, 2000, p=sizes / sizes.sum())] + 0.5 * rng.standard_normal((2000, dim)) * scale
    vectors = finer[rng.integers(0, 2000, count)] + 0.35 * rng.standard_normal((count, dim)) * scale
    asked = vectors[rng.choice(count, queries, replace=False)] + 0.2 * rng.standard_normal((queries, dim)) * scale
    return unit(vectors), unit(asked)


def unit(vectors: np.ndarray) -> FloatArray:
    """At unit length."""
    return np.ascontiguousarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def interleaved(searches: dict[str, Search], queries: FloatArray) -> dict[str, float]:
    """Median microseconds a query of each, one query a call."""
    times: dict[str, list[float]] = {name: [] for name in searches}
    for _ in range(ROUNDS):
        for name, search in searches.items():
            search(queries[:1])
            started = time.perf_counter()
            for at in range(len(queries)):
                search(queries[at : at + 1])
            times[name].append((time.perf_counter() - started) / len(queries) * 1e6)
    return {name: float(np.median(rounds)) for name, rounds in times.items()}


def peers(vectors: FloatArray) -> dict[str, Search]:
    """The other libraries, at settings that reach about the target's recall; a line says which is not there."""
    found: dict[str, Search] = {}
    for name, make in (("hnswlib", _hnswlib), ("usearch", _usearch)):
        try:
            found[name] = make(importlib.import_module("usearch.index" if name == "usearch" else name), vectors)
        except ImportError:
            print(f"{name}: not installed, left out (pip install {name})", flush=True)
    return found


def _hnswlib(module: Any, vectors: FloatArray) -> Search:
    index = module.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    index.add_items(vectors, num_threads=1)
    index.set_ef(256)
    return lambda query: index.knn_query(query, k=K, num_threads=1)[0]


def _usearch(module: Any, vectors: FloatArray) -> Search:
    index = module.Index(ndim=vectors.shape[1], metric="ip", connectivity=16, expansion_search=256)
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return lambda query: index.search(query[0], K, threads=1).keys[None]


def bench_choice(targets: Targets, vectors: FloatArray, asked: FloatArray, flat: Any) -> None:
    """Speed at recall, and what the wrapper costs."""
    held_out, fresh = asked[QUERIES:], asked[:QUERIES]
    choice = choose(vectors, held_out, IndexConfig(k=K))
    index = choice.index
    for row in choice.measured:
        print(f"  {row.factory} {row.parameters}: recall {row.recall:.4f}, {row.queries_per_s:.0f} queries/s")
    least = ExactIndex(vectors).search(fresh, K)[1][:, -1:] - 1e-5
    searches: dict[str, Search] = {"FlatIP": lambda q: flat.search(q, K), "ours": lambda q: index.search(q, K)}
    others = peers(vectors)
    us = interleaved(searches | others, fresh)
    recall = float((index.search(fresh, K)[1] >= least).mean())
    print(f"chosen: {index.factory}; {choice.note}; recall@{K} on fresh queries {recall:.4f}")
    for name, search in others.items():
        rows = np.concatenate([search(fresh[at : at + 1]) for at in range(QUERIES)]).astype(np.int64)
        scores = np.einsum("qkd,qd->qk", vectors[rows], fresh)
        print(
            f"peer {name}: {1e6 / us[name]:.0f} queries/s at recall {(scores >= least).mean():.4f}, "
            f"ours {us[name] / us['ours']:.2f} x"
        )
    ratio = us["FlatIP"] / us["ours"]
    met = ratio >= 10 and recall >= 0.99
    targets.check(f"queries/s at recall {recall:.4f}", 1e6 / us["FlatIP"], 1e6 / us["ours"], ratio, ">= 10, .99", met)
    if isinstance(index, FaissIndex):
        raw = index.index
        pair = interleaved({"raw": lambda q: raw.search(q, K), "ours": lambda q: index.search(q, K)}, fresh)
        over = pair["ours"] - pair["raw"]
        targets.check(
            "wrapper, us", pair["raw"], pair["ours"], pair["ours"] / pair["raw"], f"+{over:.1f} of +20", over <= 20
        )
    for share in SHARES:
        bench_filter(targets, index, fresh, flat, share)


def bench_filter(targets: Targets, index: Any, queries: FloatArray, flat: Any, share: float) -> None:
    """Filtered search against Flat without a filter, and whether it is exact."""
    vectors = index.vectors
    subset = Subset(np.random.default_rng(1).random(len(vectors)) < share)
    allowed = Allowed.everywhere(subset, 1)
    us = interleaved(
        {"flat": lambda q: flat.search(q, K), "ours": lambda q: index.search(q, K, None, allowed)}, queries[:50]
    )
    ratio, num = us["ours"] / us["flat"], min(K, subset.size)
    exact = True
    for at in range(20):
        scores = np.where(subset.mask, vectors @ queries[at], -np.inf)
        found = index.search(queries[at : at + 1], K, None, allowed)
        exact &= int((found[0] >= 0).sum()) == num
        exact &= bool(np.allclose(found[1][0, :num], -np.sort(-scores)[:num], atol=1e-5))
    limit = 1.4 if share > 0.1 else 0.25
    met = exact and ratio <= limit and (share > 0.01 or us["ours"] <= 200 * len(vectors) / 100_000)
    word = "exact" if exact else "NOT EXACT"
    targets.check(f"filter {share:.2%} ({word}), us", us["flat"], us["ours"], ratio, f"<= {limit}", met)


def main() -> int:
    """Print every target; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=128)
    options = parser.parse_args()
    faiss = import_faiss()
    faiss.omp_set_num_threads(1)
    vectors, asked = make_vectors(options.items, options.dim, 3 * QUERIES)
    flat = faiss.IndexFlatIP(options.dim)
    flat.add(vectors)
    targets = Targets()
    print(f"{options.items} x {options.dim}, k {K}, one query a call, one thread", flush=True)
    bench_choice(targets, vectors, asked, flat)
    print(f"met {targets.met} of {targets.total}")
    return int(targets.met < targets.total)


if __name__ == "__main__":
    raise SystemExit(main())
