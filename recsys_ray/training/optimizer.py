"""AdamW with decay groups, and the learning rate as a function of the step."""

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn
from torch.optim import AdamW, Optimizer

Schedule = Literal["cosine", "constant"]


def decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups, to be made before an engine shards them.

    Matrices are decayed; biases, norms, scalars and embedding tables are not. A row of a table gets a gradient only
    when its item is met, and decay would shrink the rare rows all the while.
    """
    tables = {id(inner.weight) for inner in module.modules() if isinstance(inner, nn.Embedding)}
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = [p for p in parameters if p.dim() >= 2 and id(p) not in tables]
    chosen = {id(parameter) for parameter in decayed}
    plain = [parameter for parameter in parameters if id(parameter) not in chosen]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_adamw(module: nn.Module, learning_rate: float, weight_decay: float) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the decay groups."""
    return AdamW(decay_groups(module, weight_decay), lr=learning_rate, betas=(0.9, 0.98), fused=True)


def learning_rate_factor(step: int, total_steps: int, warmup_steps: int, schedule: Schedule) -> float:
    """What the learning rate is multiplied by at a step counted from 0.

    It rises linearly over the warm-up, then stays 1 or falls along half a cosine to 0 at `total_steps`
    (Loshchilov and Hutter 2017, arXiv:1608.03983).
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))


def set_learning_rate(groups: Iterable[dict[str, Any]], learning_rate: float) -> None:
    """Put a learning rate into all parameter groups."""
    for group in groups:
        group["lr"] = learning_rate
