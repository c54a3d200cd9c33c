"""AdamW with decay groups, and the learning rate as a function of the step."""

import math
from collections.abc import Collection, Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

Schedule = Literal["cosine", "constant"]
BETAS = (0.9, 0.98)
EPSILON = 1e-8


def decay_by_name(module: nn.Module, weight_decay: float) -> dict[str, float]:
    """The decay of each trained parameter.

    Matrices are decayed; biases, norms, scalars and the rows of `nn.Embedding` are not. A row gets a gradient only when
    its item is met, and decay would shrink the rare rows all the while.
    """
    tables = {id(inner.weight) for inner in module.modules() if isinstance(inner, nn.Embedding)}
    trained = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {
        name: weight_decay if len(whole_shape(one)) >= 2 and id(one) not in tables else 0.0
        for name, one in trained.items()
    }


def whole_shape(parameter: nn.Parameter) -> torch.Size:
    """A parameter's shape, which DeepSpeed keeps beside one that it has sharded: what is left there is empty."""
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape


def decay_groups(module: nn.Module, weight_decay: float, without: Collection[str] = ()) -> list[dict[str, Any]]:
    """Parameters in two groups, decayed and not; some may be left out."""
    decays = decay_by_name(module, weight_decay)
    named = [(decays[name], one) for name, one in module.named_parameters() if name in decays and name not in without]
    groups = [
        {"params": [one for decay, one in named if decay], "weight_decay": weight_decay},
        {"params": [one for decay, one in named if not decay], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_adamw(
    module: nn.Module, learning_rate: float, weight_decay: float, without: Collection[str] = ()
) -> Optimizer:
    """AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) over the decay groups."""
    groups = decay_groups(module, weight_decay, without)
    return AdamW(groups, lr=learning_rate, betas=BETAS, eps=EPSILON, fused=True)


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
