import itertools

import pytest
import torch
from torch import nn

from recsys_ray.training.optimizer import build_adamw, decay_groups, learning_rate_factor, set_learning_rate


def test_only_matrices_are_decayed() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "linear": nn.Linear(4, 3), "norm": nn.LayerNorm(3)})
    model["linear"].bias.requires_grad_(False)
    decayed, plain = decay_groups(model, 0.1)
    assert [p.shape for p in decayed["params"]] == [torch.Size([3, 4])]
    assert decayed["weight_decay"] == 0.1
    assert {id(p) for p in plain["params"]} == {
        id(model["table"].weight),
        id(model["norm"].weight),
        id(model["norm"].bias),
    }
    assert plain["weight_decay"] == 0.0


def test_the_learning_rate_reaches_every_group() -> None:
    optimizer = build_adamw(nn.Linear(4, 3), 0.1, 0.01)
    set_learning_rate(optimizer.param_groups, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def test_warm_up_then_half_a_cosine() -> None:
    factors = [learning_rate_factor(step, 100, 10, "cosine") for step in range(101)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert all(a < b for a, b in itertools.pairwise(factors[:11]))
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert learning_rate_factor(150, 100, 10, "cosine") == pytest.approx(0.0)


def test_a_constant_schedule_stays() -> None:
    assert {learning_rate_factor(step, 100, 0, "constant") for step in range(200)} == {1.0}
