"""Negatives that all ranks share: one draw for everybody, encoded in slices, brought together with their gradient."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import DataError


@dataclass(frozen=True)
class Draw:
    """The negatives of one step.

    Attributes:
        rows: (n,) catalogue rows; a row may come several times.
        log_expected: (n,) log of how often the draw is expected to hold that row; infinite for rows that are there for
            some positions alone.
        own: (2, k) those positions, as places in `Events.items` of what is predicted there, and which of the n rows
            stands for itself at them.
    """

    rows: IntArray
    log_expected: FloatArray
    own: IntArray = field(default_factory=lambda: np.zeros((2, 0), np.int64))

    def slice_of(self, rank: int, world_size: int) -> IntArray:
        """The rows that this rank encodes."""
        start, end = slice_bounds(len(self.rows), rank, world_size)
        return self.rows[start:end]


class NegativeSampler:
    r"""Draws n of the N items with events, with replacement: :math:`q(i) = (1 - m) / N + m \cdot c_i / \sum_j c_j`.

    Items without an event are never drawn: always in the wrong, they would teach that what is new is disliked.

    Of n independent draws :math:`E[i] = n \, q(i)` are expected to be item i, exactly, which is what logQ corrects by.
    The generator is seeded by (seed, step) alone: every rank draws the same.

    Args:
        counts: Events of each item over the whole training set, not over one rank's share of it.
        count: n. "all", or an n of at least N, is each of them once, with `log_expected` 0: the full softmax.
        popularity: m, the share drawn by popularity.
        seed: The run's seed.

    Raises:
        DataError: When no item has an event.
    """

    def __init__(self, counts: IntArray, count: int | Literal["all"], popularity: float, seed: int) -> None:
        self._seed, self._rows = seed, np.flatnonzero(counts)
        if not len(self._rows):
            raise DataError("there are no negatives to draw: no item has an event")
        self._count = None if count == "all" or count >= len(self._rows) else count
        probabilities = _mixture(counts[self._rows], popularity)
        self._cumulative = np.cumsum(probabilities)
        self._cumulative /= self._cumulative[-1]
        self._log_probabilities = np.log(probabilities)

    @property
    def draws_all(self) -> bool:
        """Whether every item with an event is a negative of every step."""
        return self._count is None

    def draw(self, step: int) -> Draw:
        """The negatives of a step, the same on every rank."""
        if self._count is None:
            return Draw(self._rows, np.zeros(len(self._rows), np.float32))
        uniform = np.random.default_rng([self._seed, step]).random(self._count)
        drawn = np.searchsorted(self._cumulative, uniform, side="right")
        log_expected = self._log_probabilities[drawn] + np.log(self._count)
        return Draw(self._rows[drawn], log_expected.astype(np.float32))


def slice_bounds(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of one rank's slice; all but the last ones are of equal size."""
    size = -(-count // world_size)
    return min(rank * size, count), min((rank + 1) * size, count)


def gather_with_gradient(local: Float[Tensor, "m *D"], count: int) -> Float[Tensor, "n *D"]:
    """Put the slices of all ranks together, in rank order; the gradient of each slice flows back to its rank.

    The result is used by every rank's loss, so the backward pass sums its gradient over the ranks and hands each rank
    its slice. A gather that drops the gradient (as `torch.distributed.all_gather` does) trains each rank against
    constants and gives other gradients than one worker would.

    Args:
        local: This rank's slice, see `slice_bounds`.
        count: n, the length of the whole.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return local
    gathered: Tensor = _Gather.apply(local, count)  # type: ignore[no-untyped-call]
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor, count: int) -> Tensor:
        world_size = dist.get_world_size()
        ctx.bounds = slice_bounds(count, dist.get_rank(), world_size)
        # Collectives want equal sizes, and the last slices may be shorter.
        padded = local.new_zeros(-(-count // world_size), *local.shape[1:])
        padded[: len(local)] = local
        parts = [torch.empty_like(padded) for _ in range(world_size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[:count]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        total = grad_outputs[0].contiguous().clone()
        dist.all_reduce(total)
        start, end = ctx.bounds
        return total[start:end], None


def _mixture(counts: IntArray, popularity: float) -> npt.NDArray[np.float64]:
    uniform = np.full(len(counts), (1.0 - popularity) / len(counts))
    return uniform + popularity * counts / int(counts.sum())
