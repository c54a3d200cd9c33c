"""The k best of each row of scores, the same everywhere: by falling score, equal scores by rising column."""

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import FloatArray, IntArray

_CELLS_AT_ONCE = 1 << 20  # bounds what is held beside the scores to some 40 MB, however many of them are equal
_LOWEST = np.finfo(np.float32).min
_LOW_BITS = np.uint64(32)
_LOW_HALF = np.uint64(0xFFFF_FFFF)

Keys = npt.NDArray[np.uint64]
NO_KEY = np.uint64(0xFFFF_FFFF_FFFF_FFFF)
"""Fills up rows of keys: it comes after every key of `falling_keys`."""


def top_k_columns(scores: FloatArray, k: int) -> tuple[IntArray, FloatArray]:
    """Choose the k best columns of each row; minus infinity is never chosen.

    Args:
        scores: (B, N) float32, not NaN.
        k: How many; the result is k wide also when k > N.

    Returns:
        (B, k) columns padded with -1, and their (B, k) float32 scores padded with minus infinity.
    """
    num_queries, num_items = scores.shape
    columns = np.full((num_queries, k), -1, np.int64)
    values = np.full((num_queries, k), -np.inf, np.float32)
    if min(num_items, k) == 0:
        return columns, values
    if num_queries == 1:
        _fill_one(scores[0], k, columns[0], values[0])
        return columns, values
    step = max(1, _CELLS_AT_ONCE // num_items)
    for start in range(0, num_queries, step):
        block = slice(start, start + step)
        _fill(scores[block], k, columns[block], values[block])
    return columns, values


def _fill(scores: FloatArray, k: int, columns: IntArray, values: FloatArray) -> None:
    """Write the best of a few rows: those that may be among the k are found by one comparison, then sorted."""
    flat = np.flatnonzero(scores >= _thresholds(scores, k)[:, None])
    query, column = np.divmod(flat, scores.shape[1])
    counts = np.bincount(query, minlength=len(scores))
    place = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    keys = np.full((len(scores), int(counts.max(initial=0))), NO_KEY)
    keys[query, place] = falling_keys(scores[query, column], column)
    keys.sort(axis=1)
    best = keys[:, :k]
    found = best < NO_KEY
    width = best.shape[1]
    columns[:, :width] = np.where(found, low_half(best), -1)
    values[:, :width] = np.where(found, np.take_along_axis(scores, np.maximum(columns[:, :width], 0), 1), -np.inf)


def _fill_one(scores: FloatArray, k: int, columns: IntArray, values: FloatArray) -> None:
    """The same for one row in a fifth of the calls, which for the few items of a narrow filter are all the time."""
    least = _LOWEST
    if len(scores) > k:
        # Of very many, a first cut by groups leaves a few percent to the exact one.
        least = _thresholds(scores[None], k)[0] if len(scores) > 32 * k else np.partition(scores, -k)[-k]
    chosen = np.flatnonzero(scores >= max(least, _LOWEST))
    order = np.lexsort((chosen, -scores[chosen]))[:k]
    columns[: len(order)] = chosen[order]
    values[: len(order)] = scores[columns[: len(order)]]


def _thresholds(scores: FloatArray, k: int) -> FloatArray:
    """(B,) a finite score that at least k columns of the row reach, where k do: the k-th best of the groups' best."""
    num_queries, num_items = scores.shape
    groups = max(4 * k, num_items // 16)
    size = num_items // groups
    if size < 2:
        return np.full(num_queries, _LOWEST)
    best = scores[:, : size * groups].reshape(num_queries, size, groups).max(1)
    return np.maximum(np.partition(best, groups - k, axis=1)[:, groups - k], _LOWEST)


def falling_keys(scores: FloatArray, then: IntArray) -> Keys:
    """Integers that rise where scores fall and, where scores are equal, with `then`: one sort orders both.

    Args:
        scores: (n,) float32, not NaN.
        then: (n,) from 0, below 2^32 - 1.
    """
    bits = (scores + np.float32(0)).view(np.uint32)  # adding 0 makes one zero of both
    negative = bits >> np.uint32(31) == 1
    falling = np.where(negative, bits, ~bits & np.uint32(0x7FFF_FFFF)).astype(np.uint64)
    return (falling << _LOW_BITS) | then.astype(np.uint64)


def low_half(keys: Keys) -> IntArray:
    """What `falling_keys` took as `then`."""
    return (keys & _LOW_HALF).astype(np.int64)
