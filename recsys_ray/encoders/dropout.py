"""Dropout that does not dominate a training step on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropout(nn.Module):
    """Hide each number with a probability, and scale the rest up, in training alone.

    On a CPU torch draws a random number of many bits for every element, which took a fifth of a step of the user
    tower. Eight bits an element are drawn eight at a time instead, four times as fast; the probability is rounded to
    256ths and the scale fits the rounded one, so the mean stays exact.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability
        self._hidden = min(round(probability * 256), 255)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape and type."""
        if not self.training or not self.probability:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        kept = words.view(torch.int8)[: x.numel()].view(x.shape) >= self._hidden - 128
        return x * kept.to(x.dtype).mul_(256 / (256 - self._hidden))
