"""How well an approximate index answers under filters, measured for some shares of allowed items.

Filters at random are the easy case: what is allowed lies everywhere. Those that people ask are not: a category lies
together, often far from the query, where an index looks last. So each share is measured with both kinds, the worse one
counts, and a filter is judged by the next tighter share.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.index.costs import fastest_ns
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.subset import Found, Subset

INSIDE, WIDEN = "inside", "widen"
_SHARES = (0.8, 0.5, 0.2, 0.1, 0.05)
_QUERIES = 50
_SPARE = 1.5  # widened searches take so many times what a filter at random would need
_TIE = 1e-5

Way = Callable[[FloatArray, int, Ragged | None, Subset], Found | None]
"""Searches under a filter; None where the index cannot do that."""


@dataclass(frozen=True)
class Plan:
    """One way under filters that allow one share, as measured.

    Attributes:
        way: "inside" the index, or "widen": take more and drop what is not allowed.
        share: Of the items that is allowed.
        recall: Against exact search, the worse of filters at random and filters of what lies together.
        ns: Nanoseconds a query, the slower of the two.
    """

    way: str
    share: float
    recall: float
    ns: float


def cheapest(plans: tuple[Plan, ...], share: float, recall: float) -> Plan | None:
    """Of the ways that hold the recall at the next share below `share`, the fastest; None where none does."""
    judged = [max((p for p in plans if p.way == way and p.share <= share), key=_share, default=None) for way in _WAYS]
    holding = [plan for plan in judged if plan is not None and plan.recall >= recall]
    return min(holding, key=lambda plan: plan.ns, default=None)


def measure(exact: ExactIndex, queries: FloatArray, k: int, ways: Mapping[str, Way]) -> tuple[Plan, ...]:
    """Each way at each share.

    Args:
        exact: The oracle.
        queries: (Q, D) as they will come.
        k: How many results.
        ways: What to measure.
    """
    queries = np.ascontiguousarray(queries[np.linspace(0, len(queries) - 1, _QUERIES).astype(np.int64)])
    plans = []
    for share in _SHARES:
        for name, way in ways.items():
            measured = [_measure(exact, queries, k, way, subset) for subset in _subsets(exact.vectors, share)]
            found = [one for one in measured if one is not None]
            if len(found) == len(measured):
                plans.append(Plan(name, share, min(one[0] for one in found), max(one[1] for one in found)))
    return tuple(plans)


def fetch_for(k: int, subset: Subset) -> int:
    """How many results hold k allowed ones, with some to spare, were the filter one at random."""
    return int(np.ceil(_SPARE * k / max(subset.share, 1e-9)))


def inside_parameters(index: Any, subset: Subset) -> Any | None:
    """FAISS's search parameters with the filter inside, looking as much further as the filter is tight.

    None for kinds of index that take no filter (fast scan, refinement).
    """
    faiss: Any = import_module("faiss")  # its stubs know neither selectors nor their parameters
    inner = faiss.downcast_index(index)
    selector = faiss.IDSelectorBitmap(subset.bits)
    widened = 1 / max(subset.share, 1e-9)
    if isinstance(inner, faiss.IndexIVF) and not isinstance(inner, faiss.IndexIVFFastScan):
        return faiss.SearchParametersIVF(sel=selector, nprobe=int(min(inner.nlist, np.ceil(inner.nprobe * widened))))
    if isinstance(inner, faiss.IndexHNSW):
        width = min(inner.hnsw.efSearch * widened, len(subset.mask))
        return faiss.SearchParametersHNSW(sel=selector, efSearch=int(np.ceil(width)))
    if isinstance(inner, faiss.IndexFlat | faiss.IndexScalarQuantizer):
        return faiss.SearchParameters(sel=selector)
    return None


_WAYS = (INSIDE, WIDEN)


def _share(plan: Plan) -> float:
    return plan.share


def _measure(exact: ExactIndex, queries: FloatArray, k: int, way: Way, subset: Subset) -> tuple[float, float] | None:
    found = way(queries, k, None, subset)
    if found is None:
        return None
    least = exact.search_among(queries, k, None, subset)[1][:, -1:]
    recall = float((found[1] >= least - _TIE).mean())
    one = fastest_ns(lambda: [way(queries[at : at + 1], k, None, subset) for at in range(len(queries))])
    return recall, one / len(queries)


def _subsets(vectors: FloatArray, share: float) -> Iterator[Subset]:
    """A set at random, and the items most like one item at random."""
    rng = np.random.default_rng(0)
    yield Subset(rng.random(len(vectors)) < share)
    likeness = vectors @ vectors[rng.integers(len(vectors))]
    yield Subset(likeness >= np.quantile(likeness, 1 - share))
