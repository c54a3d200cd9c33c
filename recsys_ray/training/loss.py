"""Sampled softmax over shared negatives, with logQ correction and without accidental hits, in bounded memory."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits that exist at once: 4 MB of fp32, which stays in the cache and bounds the memory."""
MIN_POSITIONS = 32
"""But so many positions at once at least: past 32,768 negatives, reading those again and again would cost more."""


@dataclass(frozen=True)
class Negatives:
    """The shared negatives of all ranks.

    Attributes:
        vectors: Of each.
        rows: Their catalogue rows; a row may come several times.
        log_expected: log E of each, see `recsys_ray.training.negatives`; infinite where it counts in `own` alone.
        own: (position, negative) pairs in which a negative stands for its row itself, whatever else holds that row.
        own_weight: As how many items it counts there.
    """

    vectors: Float[Tensor, "n D"]
    rows: Int[Tensor, " n"]
    log_expected: Float[Tensor, " n"]
    own: Int[Tensor, "2 k"] = field(default_factory=lambda: torch.zeros((2, 0), dtype=torch.int64))
    own_weight: float = 1.0


def sampled_softmax(
    queries: Float[Tensor, "P D"],
    targets: Float[Tensor, "P D"],
    target_rows: Int[Tensor, " P"],
    negatives: Negatives,
    scale: tuple[float, Float[Tensor, " P"] | None] = (1.0, None),
) -> Float[Tensor, ""]:
    r"""Sum over positions of the weighted cross-entropy of the target against itself and the negatives.

    With :math:`s(i) = q \cdot v_i / \tau`, one position costs

    .. math:: -s(t) + \log\Bigl(e^{s(t)} + \sum_{j : i_j \ne t} e^{s(i_j) - \log E[i_j]}\Bigr)

    where :math:`E[i]` is how often the draw is expected to hold item i. The target is there for certain, so its own
    logit takes no correction, and what is left of the sum estimates the rest of the full partition function without
    bias (Bengio and Senécal 2008, "Adaptive importance sampling to accelerate training of a neural probabilistic
    language model"; Jean et al. 2015, arXiv:1412.2007, section 3; the correction in two-tower models: Yi et al. 2019,
    "Sampling-bias-corrected neural modeling for large corpus item recommendations"). Negatives that are the target
    itself are accidental hits and are left out. With every item as a negative once and `log_expected` 0 it is the
    full softmax.

    Where a negative is a position's own, other negatives of its row are left out there in the same way, and it counts
    as :math:`w \, e^{s(i)}`: a stratum that is taken whole, beside the drawn ones for the others (Cochran 1977, 5.1).

    Gradients are made chunk by chunk in the forward pass, so that no (P, n) array ever exists; under autocast the
    products are in the autocast type and everything from the logits on in fp32. It cannot be differentiated twice.

    Args:
        queries: Query vectors at the supervised positions.
        targets: The vectors of the items that came next.
        target_rows: Their catalogue rows.
        negatives: What they are compared with.
        scale: The temperature, and a weight for each position (None: all 1).

    Returns:
        The fp32 sum, to be divided by the global number of positions.
    """
    temperature, weights = scale
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        (temperature, math.log(negatives.own_weight)),
        weights,
        queries,
        targets,
        negatives.vectors,
        target_rows,
        negatives.rows,
        negatives.log_expected,
        negatives.own,
    )
    return loss


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scale: tuple[float, float], weights: Tensor | None, *tensors: Tensor) -> Tensor:
        queries, targets, negatives, target_rows, negative_rows, log_expected, own = tensors
        temperature, log_weight = scale
        device = queries.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.dtype
        with torch.autocast(device, enabled=False):
            chunks = _Chunks(
                queries.to(dtype),
                targets.to(dtype),
                negatives.to(dtype),
                log_expected.float(),
                _Hits(target_rows, negative_rows, own, log_weight),
                1.0 / temperature,
            )
            ctx.needed = any(ctx.needs_input_grad[2:5])
            loss, *gradients = chunks.run(weights, ctx.needed)
        if ctx.needed:
            inputs = (queries, targets, negatives)
            ctx.save_for_backward(*(grad.to(like.dtype) for grad, like in zip(gradients, inputs, strict=True)))
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        (upstream,) = grad_outputs
        return (None, None, *(grad * upstream.to(grad.dtype) for grad in ctx.saved_tensors), None, None, None, None)


class _Hits:
    """What the logits of some (position, negative) pairs become.

    Negatives that are the position's target, or of a row of its own, are left out; its own are then put in their place.
    """

    def __init__(self, target_rows: Tensor, negative_rows: Tensor, own: Tensor, log_weight: float) -> None:
        count, self._log_weight = len(target_rows), log_weight
        positions = torch.arange(count, device=target_rows.device)
        rows = torch.cat([target_rows, negative_rows[own[1]]])
        self._out = _Pairs(_all_of(torch.cat([positions, own[0]]), rows, negative_rows), count)
        self._own = _Pairs(own, count)

    def corrected(self, logits: Tensor, log_expected: Tensor | None, start: int) -> Tensor:
        """In place, (C, n) logits of the positions from `start` on."""
        end = start + len(logits)
        own = self._own.between(start, end)
        raw = logits[own]
        if log_expected is not None:
            logits.sub_(log_expected)
        logits[self._out.between(start, end)] = -torch.inf
        logits[own] = raw + self._log_weight
        return logits


class _Pairs:
    """(2, m) index pairs of a position and a negative, found by position."""

    def __init__(self, pairs: Tensor, num_positions: int) -> None:
        self._positions, order = pairs[0].sort(stable=True)
        self._negatives = pairs[1][order]
        self._starts = torch.searchsorted(self._positions, torch.arange(num_positions + 1, device=pairs.device))

    def between(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        """Those of the positions start … end - 1, counted from the first of them."""
        low, high = (0, 0) if not len(self._positions) else (int(self._starts[start]), int(self._starts[end]))
        return self._positions[low:high] - start, self._negatives[low:high]


def _all_of(positions: Tensor, rows: Tensor, negative_rows: Tensor) -> Tensor:
    """(2, m) each position with every negative of its row."""
    ordered, order = negative_rows.sort()
    low = torch.searchsorted(ordered, rows)
    counts = torch.searchsorted(ordered, rows, right=True) - low
    entry = torch.repeat_interleave(torch.arange(len(rows), device=rows.device), counts)
    within = torch.arange(len(entry), device=rows.device) - (counts.cumsum(0) - counts)[entry]
    return torch.stack([positions[entry], order[low[entry] + within]])


class _Chunks:
    """Loss and gradients of all positions, some at a time."""

    def __init__(
        self, queries: Tensor, targets: Tensor, negatives: Tensor, log_expected: Tensor, hits: _Hits, scale: float
    ) -> None:
        self._queries, self._targets, self._negatives = queries, targets, negatives
        self._log_expected, self._hits, self._scale = log_expected, hits, scale
        self._corrected = bool(log_expected.any())

    def run(self, weights: Tensor | None, with_gradient: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(loss, gradient of queries, of targets, of negatives)."""
        loss = self._log_expected.new_zeros(())
        of_queries, of_targets = torch.empty_like(self._queries), torch.empty_like(self._targets)
        of_negatives = torch.zeros_like(self._negatives, dtype=self._log_expected.dtype)
        size = max(MIN_POSITIONS, CHUNK_ELEMENTS // max(1, len(self._negatives)))
        logits, products = self._buffers(min(size, len(self._queries)))
        for start in range(0, len(self._queries), size):
            end = min(start + size, len(self._queries))
            weight = None if weights is None else weights[start:end].float()
            chunk, low = logits[: end - start], products[: end - start]
            mass, total, losses = self._softmax(start, end, chunk, low)
            loss += losses.sum() if weight is None else (losses * weight).sum()
            if not with_gradient:
                continue
            # The factor of a row of the parts goes into what is made of it, and into what it is multiplied with.
            factor = self._scale / total if weight is None else self._scale * weight[:, None] / total
            parts = chunk if low is chunk else low.copy_(chunk)
            of_target = (mass * factor).to(self._queries.dtype)
            queries = self._queries[start:end]
            pulled = torch.matmul(parts, self._negatives).float() * factor
            of_queries[start:end] = pulled.to(self._queries.dtype) - of_target * self._targets[start:end]
            of_targets[start:end] = -of_target * queries
            of_negatives += parts.T @ (queries * factor).to(queries.dtype)
        return loss, of_queries, of_targets, of_negatives

    def _buffers(self, positions: int) -> tuple[Tensor, Tensor]:
        """(C, n) in fp32 and in the type of the products, the same where that is fp32; all chunks share them.

        Memory that is new to the process costs a page fault every 4 KB, which took half the time of this loss.
        """
        logits = self._log_expected.new_empty((positions, len(self._negatives)))
        low = (
            logits if self._queries.dtype == logits.dtype else logits.new_empty(logits.shape, dtype=self._queries.dtype)
        )
        return logits, low

    def _softmax(self, start: int, end: int, logits: Tensor, products: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum of the parts of the negatives (C, 1), what all are divided by (C, 1), and the losses (C,).

        The parts (C, n) are left in `logits`. Each pass over (C, n) numbers costs about as much as the product that
        makes them, so there are few: the scale goes into the queries before, the division into the factor after.
        """
        queries = self._queries[start:end]
        torch.matmul((queries.float() * self._scale).to(queries.dtype), self._negatives.T, out=products)
        if products is not logits:
            logits.copy_(products)
        self._hits.corrected(logits, self._log_expected if self._corrected else None, start)
        # Row by row product in fp32: the positive is one number a row, so it may as well be exact.
        positive = (queries.float() * self._targets[start:end].float()).sum(1, keepdim=True) * self._scale
        top = torch.maximum(logits.amax(1, keepdim=True), positive) if logits.shape[1] else positive
        mass = logits.sub_(top).exp_().sum(1, keepdim=True)
        total = mass + (positive - top).exp()
        losses = (total.log() + top - positive).squeeze(1)
        return mass, total, losses
