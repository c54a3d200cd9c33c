"""Candidates: the one value that channels return and fusion merges."""

from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.index.topk import top_k_columns


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
    return Candidates(*top_k_columns(scores, k))


def concatenate(parts: list[Candidates]) -> Candidates:
    """The lists of several batches, one after the other; all of the same width."""
    return Candidates(np.concatenate([part.rows for part in parts]), np.concatenate([part.scores for part in parts]))
