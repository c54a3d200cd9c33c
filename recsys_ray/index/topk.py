"""The k best of each row of scores, the same everywhere: by falling score, equal scores by rising column."""

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray


def top_k_columns(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Choose the k best columns of each row; minus infinity is never chosen.

    Args:
        scores: (B, N).
        k: How many; the result is k wide also when k > N.

    Returns:
        (B, k) columns padded with -1, and their (B, k) float32 scores padded with minus infinity.
    """
    num_queries, num_items = scores.shape
    columns = np.full((num_queries, k), -1, np.int64)
    values = np.full((num_queries, k), -np.inf, np.float32)
    width = min(k, num_items)
    if width == 0:
        return columns, values
    chosen = _chosen(scores, width)
    best = np.take_along_axis(scores, chosen, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    best = np.take_along_axis(best, order, 1).astype(np.float32)
    columns[:, :width] = np.where(np.isneginf(best), -1, np.take_along_axis(chosen, order, 1))
    values[:, :width] = best
    return columns, values


def _chosen(scores: FloatArray, width: int) -> IntArray:
    """(B, width) the chosen columns of each row, rising."""
    num_items = scores.shape[1]
    if width == num_items:
        return np.broadcast_to(np.arange(num_items, dtype=np.int64), scores.shape)
    chosen = np.argpartition(scores, num_items - width, axis=1)[:, num_items - width :]
    chosen.sort(axis=1)
    # argpartition cuts through equal scores anywhere; where it did, the lowest columns must win.
    least = np.take_along_axis(scores, chosen, 1).min(1)
    num_equal = (scores == least[:, None]).sum(1)
    num_equal_chosen = (np.take_along_axis(scores, chosen, 1) == least[:, None]).sum(1)
    for row in np.flatnonzero((num_equal > num_equal_chosen) & ~np.isneginf(least)):
        above = np.flatnonzero(scores[row] > least[row])
        equal = np.flatnonzero(scores[row] == least[row])[: width - len(above)]
        chosen[row] = np.sort(np.concatenate([above, equal]))
    return chosen.astype(np.int64)
