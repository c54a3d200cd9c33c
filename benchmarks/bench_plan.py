"""What `recsys-ray plan serving` predicts of an index, against indexes really built on this machine.

    python benchmarks/bench_plan.py [--items 1e4 1e5 …] [--dim 128] [--k 100] [--build-s 120]

Per size: each candidate of `index.factory = auto` is built, and its file and the median time of its searches are set
beside the prediction, which was made from a calibration of some seconds on small samples. What would take longer than
`--build-s` to build is left out aloud. In the end the plan for 1e9 vectors, which is arithmetic alone.
Target: every ratio of predicted to measured within 25 %. 1e7 vectors of 128 numbers want about 20 GB.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from recsys_ray.core.arrays import FloatArray
from recsys_ray.index.exact import EXACT, ExactIndex
from recsys_ray.index.faiss_index import build, import_faiss
from recsys_ray.index.spec import Index, candidates
from recsys_ray.planning.calibration import calibrate, made_queries, made_vectors, measure_search
from recsys_ray.planning.index_bytes import index_bytes
from recsys_ray.planning.serving import ServingLoad, plan_serving
from recsys_ray.planning.show import print_serving
from recsys_ray.planning.speeds import Speeds, family

WITHIN = 0.25
BUILD_US = {"SQfp": 1, "IVF,SQ": 100, "IVF,Flat": 100, "HNSW": 500, "PQxfs,RFlat": 10}  # an item, for the budget alone


@dataclass(frozen=True)
class Row:
    """Predicted and measured, bytes and milliseconds, and the recall that came with it."""

    items: int
    name: str
    bytes: tuple[float, float] | None
    ms: tuple[float, float]
    recall: float


def rows(num_items: int, speeds: Speeds, build_s: float) -> list[Row]:
    """Every candidate at one size."""
    vectors = made_vectors(num_items, speeds.dim)
    queries = made_queries(vectors)
    oracle = ExactIndex(vectors)
    least = oracle.search(queries, speeds.goal.k)[1][:, -1:] - 1e-5
    found = [_row(EXACT, 1.0, oracle, None, queries, least, speeds)]
    for factory, sweep in candidates(num_items, speeds.dim, speeds.goal.k):
        if BUILD_US[family(factory)] * num_items / 1e6 > build_s:
            print(f"{num_items:>11,}  {factory}: left out, building it would take more than --build-s {build_s:g}")
            continue
        started = time.perf_counter()
        index = build(vectors, factory)
        size = float(import_faiss().serialize_index(index.index).nbytes)
        print(f"{num_items:>11,}  {factory}: built in {time.perf_counter() - started:.1f} s")
        for parameters in _some(sweep):
            setting = float(parameters.split("=")[1]) if parameters else 1.0
            at = index.with_parameters(parameters)
            found.append(_row(f"{factory} {parameters}".strip(), setting, at, size, queries, least, speeds))
    return found


def _some(sweep: tuple[str, ...]) -> tuple[str, ...]:
    """First, middle and last of the settings."""
    return tuple(dict.fromkeys((sweep[0], sweep[len(sweep) // 2], sweep[-1])))


def _row(
    name: str, setting: float, index: Index, size: float | None, queries: FloatArray, least: FloatArray, speeds: Speeds
) -> Row:
    factory, num_items, k = name.split(" ")[0], len(index.vectors), speeds.goal.k
    recall = float((index.search(queries, k)[1] >= least).mean())
    measured_ms = 1e3 * measure_search(lambda query: index.search(query, k), queries)[0]
    predicted_ms = 1e3 * speeds.seconds(factory, setting, num_items)
    sizes = None if size is None else (float(index_bytes(factory, num_items, speeds.dim)), size)
    return Row(num_items, name, sizes, (predicted_ms, measured_ms), recall)


def show(found: list[Row]) -> tuple[int, int]:
    """Print the table; returns how many ratios are within the target, of how many."""
    heads = f"{'MB plan':>10}{'real':>10}{'ratio':>7}  {'ms plan':>9}{'real':>9}{'ratio':>7}"
    print(f"\n{'items':>11}  {'index':34}{heads}  recall")
    ratios = []
    for row in found:
        size = (
            "" if row.bytes is None else f"{row.bytes[0] / 1e6:10.1f}{row.bytes[1] / 1e6:10.1f}{_ratio(row.bytes):7.2f}"
        )
        ms = f"{row.ms[0]:9.3f}{row.ms[1]:9.3f}{_ratio(row.ms):7.2f}"
        print(f"{row.items:>11,}  {row.name:34}{size:27}  {ms}  {row.recall:.3f}")
        ratios += [_ratio(row.ms)] + ([] if row.bytes is None else [_ratio(row.bytes)])
    return sum(1 / (1 + WITHIN) <= ratio <= 1 + WITHIN for ratio in ratios), len(ratios)


def _ratio(pair: tuple[float, float]) -> float:
    return pair[0] / pair[1]


def main() -> None:
    """Calibrate, build, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=float, nargs="+", default=[1e4, 1e5])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--build-s", type=float, default=120.0)
    arguments = parser.parse_args()
    started = time.perf_counter()
    speeds = calibrate(arguments.dim, arguments.k)
    print(f"calibrated for D = {arguments.dim}, k = {arguments.k} in {time.perf_counter() - started:.1f} s")
    found = [row for items in arguments.items for row in rows(int(items), speeds, arguments.build_s)]
    met, total = show(found)
    for items in arguments.items:
        ratios = [_ratio(row.ms) for row in found if row.items == int(items)]
        print(f"{items:>11,.0f}  median ratio of milliseconds {np.median(ratios):.2f}")
    load = ServingLoad(items=10**9, dim=arguments.dim, k=arguments.k, qps=1000, p95_ms=60)
    print_serving(plan_serving(load, speeds), load, Console(width=180, highlight=False, soft_wrap=True))
    print(f"met {met} of {total}")


if __name__ == "__main__":
    main()
