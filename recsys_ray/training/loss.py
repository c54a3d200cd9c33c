"""Sampled softmax over shared negatives, with logQ correction and without accidental hits, in bounded memory."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20
"""Logits that exist at once: 4 MB of fp32, which stays in the cache and bounds the memory."""
MIN_POSITIONS = 32
"""But so many positions at once at least: past 32,768 negatives, reading those again and again would cost more."""


def sampled_softmax(
    queries: Float[Tensor, "P D"],
    targets: Float[Tensor, "P D"],
    target_rows: Int[Tensor, " P"],
    negatives: Float[Tensor, "n D"],
    negative_rows: Int[Tensor, " n"],
    log_expected: Float[Tensor, " n"],
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

    Gradients are made chunk by chunk in the forward pass, so that no (P, n) array ever exists; under autocast the
    products are in the autocast type and everything from the logits on in fp32. It cannot be differentiated twice.

    Args:
        queries: Query vectors at the supervised positions.
        targets: The vectors of the items that came next.
        target_rows: Their catalogue rows.
        negatives: Vectors of the shared negatives of all ranks.
        negative_rows: Their catalogue rows; a row may come several times.
        log_expected: log E of each negative, see `recsys_ray.training.negatives`.
        scale: The temperature, and a weight for each position (None: all 1).

    Returns:
        The fp32 sum, to be divided by the global number of positions.
    """
    temperature, weights = scale
    loss: Tensor = _SampledSoftmax.apply(  # type: ignore[no-untyped-call]
        temperature, weights, queries, targets, negatives, target_rows, negative_rows, log_expected
    )
    return loss


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, temperature: float, weights: Tensor | None, *tensors: Tensor) -> Tensor:
        queries, targets, negatives, target_rows, negative_rows, log_expected = tensors
        device = queries.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.dtype
        with torch.autocast(device, enabled=False):
            chunks = _Chunks(
                queries.to(dtype),
                targets.to(dtype),
                negatives.to(dtype),
                log_expected.float(),
                _Hits(target_rows, negative_rows),
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
        return (None, None, *(grad * upstream.to(grad.dtype) for grad in ctx.saved_tensors), None, None, None)


class _Hits:
    """Which (position, negative) pairs are accidental hits, as index pairs ordered by position."""

    def __init__(self, target_rows: Tensor, negative_rows: Tensor) -> None:
        rows, order = negative_rows.sort()
        low = torch.searchsorted(rows, target_rows)
        counts = torch.searchsorted(rows, target_rows, right=True) - low
        self._starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        self._positions = torch.repeat_interleave(torch.arange(len(target_rows), device=rows.device), counts)
        within = torch.arange(len(self._positions), device=rows.device) - self._starts[self._positions]
        self._negatives = order[low[self._positions] + within]

    def between(self, start: int, end: int) -> tuple[Tensor, Tensor]:
        low, high = int(self._starts[start]), int(self._starts[end])
        return self._positions[low:high] - start, self._negatives[low:high]


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
        for start in range(0, len(self._queries), size):
            end = min(start + size, len(self._queries))
            weight = None if weights is None else weights[start:end].float()
            parts, mass, total, losses = self._softmax(start, end)
            loss += losses.sum() if weight is None else (losses * weight).sum()
            if not with_gradient:
                continue
            factor = self._scale / total if weight is None else self._scale * weight[:, None] / total
            of_logits = (parts * factor).to(self._queries.dtype)
            of_target = (mass * factor).to(self._queries.dtype)
            queries = self._queries[start:end]
            of_queries[start:end] = of_logits @ self._negatives - of_target * self._targets[start:end]
            of_targets[start:end] = -of_target * queries
            of_negatives += of_logits.T @ queries
        return loss, of_queries, of_targets, of_negatives

    def _softmax(self, start: int, end: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parts of the negatives (C, n), their sum (C, 1), what both are divided by (C, 1), and the losses (C,).

        Each pass over (C, n) numbers costs about as much as the product that makes them, so there are few: the scale
        goes into the queries before, the division into the factor of the gradient after.
        """
        queries = self._queries[start:end]
        logits = torch.matmul((queries.float() * self._scale).to(queries.dtype), self._negatives.T).float()
        if self._corrected:
            logits.sub_(self._log_expected)
        logits[self._hits.between(start, end)] = -torch.inf
        # Row by row product in fp32: the positive is one number a row, so it may as well be exact.
        positive = (queries.float() * self._targets[start:end].float()).sum(1, keepdim=True) * self._scale
        top = torch.maximum(logits.amax(1, keepdim=True), positive) if logits.shape[1] else positive
        parts = logits.sub_(top).exp_()
        mass = parts.sum(1, keepdim=True)
        total = mass + (positive - top).exp()
        losses = (total.log() + top - positive).squeeze(1)
        return parts, mass, total, losses
