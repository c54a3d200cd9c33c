"""Retrieval metrics as pure functions over ranks. A rank counts from 0 and is the mean rank among ties.

A query has one or more targets; `ranks[t]` is the rank of target t in the full ranking of the catalogue minus what the
query excludes, infinity when it was not retrieved, and `queries[t]` says which query the target belongs to.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import FloatArray, IntArray

RankArray = npt.NDArray[np.float64]


def mean_ranks(scores: FloatArray, targets: IntArray, queries: IntArray | None = None) -> RankArray:
    """Rank of each target in its query's row of scores, ties counted at their mean.

    Args:
        scores: (Q, N); minus infinity where an item is excluded or not scored.
        targets: (T,) the column of each target.
        queries: (T,) the row of each target; None where there is one target a row.

    Returns:
        (T,) from 0; infinity where the target itself has minus infinity.
    """
    rows = np.arange(len(targets)) if queries is None else queries
    own = scores[rows, targets]
    ranks: RankArray = np.full(len(targets), np.inf)
    # A row at a time stays in the processor's cache and needs no copy of the scores, however many targets share a row.
    for place in np.flatnonzero(~np.isneginf(own)).tolist():
        row, score = scores[rows[place]], own[place]
        ranks[place] = np.count_nonzero(row > score) + (np.count_nonzero(row == score) - 1) / 2
    return ranks


def list_ranks(rows: IntArray, scores: FloatArray, targets: IntArray) -> RankArray:
    """As `mean_ranks`, for targets in candidate lists; a target outside its list has rank infinity.

    Args:
        rows: (T, K) candidates, padded with -1.
        scores: (T, K) their scores, best first.
        targets: (T,) item rows.
    """
    hit = rows == targets[:, None]
    found = hit.any(1)
    own = np.where(found, np.where(hit, scores, -np.inf).max(1), np.inf)[:, None]
    above: RankArray = np.count_nonzero(scores > own, axis=1).astype(np.float64)
    ties: RankArray = np.count_nonzero((scores == own) & (rows >= 0), axis=1).astype(np.float64) - 1
    ranks = above + ties / 2.0
    ranks[~found] = np.inf
    return ranks


def per_query(values: RankArray, queries: IntArray, num_queries: int) -> RankArray:
    """Sum target values by query, (Q,)."""
    return np.asarray(np.bincount(queries, weights=values, minlength=num_queries), np.float64)


def recall(ranks: RankArray, queries: IntArray, num_queries: int, k: int) -> RankArray:
    """(Q,) share of the query's targets among the first k."""
    hits = per_query((ranks < k).astype(np.float64), queries, num_queries)
    return hits / np.maximum(_targets(queries, num_queries), 1)


def hit(ranks: RankArray, queries: IntArray, num_queries: int, k: int) -> RankArray:
    """(Q,) 1 where any target is among the first k."""
    return (per_query((ranks < k).astype(np.float64), queries, num_queries) > 0).astype(np.float64)


def ndcg(ranks: RankArray, queries: IntArray, num_queries: int, k: int) -> RankArray:
    """(Q,) normalised discounted cumulative gain with binary gains.

    Järvelin and Kekäläinen 2002, log base 2; the ideal ranking puts min(k, targets) targets first.
    """
    gains = np.where(ranks < k, 1.0 / np.log2(np.where(np.isfinite(ranks), ranks, 0.0) + 2.0), 0.0)
    counts = np.minimum(_targets(queries, num_queries), k)
    ideal = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])[counts]
    normalised: RankArray = per_query(gains, queries, num_queries) / np.maximum(ideal, 1e-12)
    return normalised


def mrr(ranks: RankArray, queries: IntArray, num_queries: int, k: int) -> RankArray:
    """(Q,) reciprocal rank of the query's best target, 0 past k."""
    best = np.full(num_queries, np.inf)
    np.minimum.at(best, queries, ranks)
    reciprocal: RankArray = np.where(best < k, 1.0 / (np.where(np.isfinite(best), best, 0.0) + 1.0), 0.0)
    return reciprocal


def coverage(rows: IntArray, k: int, num_items: int) -> float:
    """Share of the catalogue that appears in anyone's first k, rows (B, K) padded with -1."""
    return float((exposure(rows, k, num_items) > 0).sum() / max(num_items, 1))


def gini(exposure: IntArray) -> float:
    """How unevenly (N,) counts are spread over the items: 0 when all are equal, towards 1 when one has them all.

    The Gini coefficient of the whole catalogue; 0 where nothing was counted.
    """
    total, count = int(exposure.sum()), len(exposure)
    if total == 0:
        return 0.0
    places = np.arange(1, count + 1)
    return float(2.0 * (places * np.sort(exposure)).sum() / (count * total) - (count + 1) / count)


def exposure(rows: IntArray, k: int, num_items: int) -> IntArray:
    """(N,) in how many lists each item is among the first k, rows (B, K) padded with -1."""
    shown = rows[:, :k]
    return np.bincount(shown[shown >= 0], minlength=num_items).astype(np.int64)


def novelty(rows: IntArray, k: int, train_counts: IntArray) -> RankArray:
    """(B,) mean self-information of each list's first k, in bits; NaN where a list is empty.

    -log2 p(i), where p(i) is the item's share of the training events (Vargas and Castells 2011). An item without
    any event counts as if it had one.

    Args:
        rows: (B, K) padded with -1.
        k: How many of each list.
        train_counts: (N,) training events of each item.
    """
    shown = rows[:, :k]
    bits = np.log2(max(int(train_counts.sum()), 1) / np.maximum(train_counts, 1))
    real = shown >= 0
    sums = np.where(real, bits[np.maximum(shown, 0)] if len(bits) else 0.0, 0.0).sum(1)
    counts = real.sum(1)
    mean: RankArray = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    return mean


METRICS: dict[str, Callable[[RankArray, IntArray, int], RankArray]] = {
    "recall@10": lambda r, q, n: recall(r, q, n, 10),
    "hit@10": lambda r, q, n: hit(r, q, n, 10),
    "ndcg@10": lambda r, q, n: ndcg(r, q, n, 10),
    "mrr@10": lambda r, q, n: mrr(r, q, n, 10),
    "recall@20": lambda r, q, n: recall(r, q, n, 20),
    "ndcg@20": lambda r, q, n: ndcg(r, q, n, 20),
    "recall@100": lambda r, q, n: recall(r, q, n, 100),
}


def _targets(queries: IntArray, num_queries: int) -> IntArray:
    return np.bincount(queries, minlength=num_queries).astype(np.int64)
