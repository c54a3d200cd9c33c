"""Candidates: the one value that channels return and fusion merges."""

from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray


@dataclass(frozen=True)
class Candidates:
    """Best first, padded.

    Attributes:
        rows: (B, K) int64 item rows, -1 where there are fewer than K.
        scores: (B, K) float32, falling; minus infinity at the padding.
    """

    rows: IntArray
    scores: FloatArray

    @classmethod
    def empty(cls, num_queries: int, k: int) -> "Candidates":
        """No candidates at all."""
        return cls(np.full((num_queries, k), -1, np.int64), np.full((num_queries, k), -np.inf, np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def first(self, k: int) -> "Candidates":
        """The first k of each list."""
        return Candidates(self.rows[:, :k], self.scores[:, :k])


def top_k(scores: FloatArray, k: int) -> Candidates:
    """The k best columns a row; minus infinity never becomes a candidate; equal scores by rising row.

    Args:
        scores: (B, N).
        k: How many; the result is (B, k) also when k > N.
    """
    num_queries, num_items = scores.shape
    width = min(k, num_items)
    result = Candidates.empty(num_queries, k)
    if width == 0:
        return result
    part = np.argpartition(-scores, width - 1, axis=1)[:, :width] if width < num_items else None
    columns = np.broadcast_to(np.arange(num_items), scores.shape) if part is None else np.sort(part, axis=1)
    best = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-best, axis=1, kind="stable")
    rows = np.take_along_axis(columns, order, 1).astype(np.int64)
    values = np.take_along_axis(best, order, 1).astype(np.float32)
    result.rows[:, :width] = np.where(np.isneginf(values), -1, rows)
    result.scores[:, :width] = values
    return result
