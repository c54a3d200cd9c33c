import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_ray.training import loss as loss_module
from recsys_ray.training.loss import Negatives, sampled_softmax


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.fixture(params=[32, 3])
def _chunked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    # Sizes, not behaviour: the chunks that a large catalogue would bring, on one that is checked in milliseconds.
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(loss_module, "MIN_POSITIONS", request.param)


@pytest.mark.usefixtures("_chunked")
def test_with_the_whole_catalogue_it_is_the_full_softmax() -> None:
    items = unit(30, 8).requires_grad_()
    queries = unit(20, 8, seed=1).requires_grad_()
    rows = torch.randint(30, (20,))
    weights = torch.rand(20)

    full = (F.cross_entropy(queries @ items.T / 0.1, rows, reduction="none") * weights).sum()
    expected = torch.autograd.grad(full, [queries, items])
    ours = sampled_softmax(
        queries, items[rows], rows, Negatives(items, torch.arange(30), torch.zeros(30)), (0.1, weights)
    )
    found = torch.autograd.grad(ours, [queries, items])

    torch.testing.assert_close(ours, full)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.usefixtures("_chunked")
def test_gradients_agree_with_finite_differences() -> None:
    queries, targets, negatives = (unit(5, 4, seed=s).double().requires_grad_() for s in range(3))
    rows, negative_rows = torch.tensor([0, 1, 2, 3, 4]), torch.tensor([3, 9, 9, 0, 7])
    log_expected = torch.log(torch.tensor([0.5, 1.5, 1.5, 0.2, 0.9], dtype=torch.float64))
    weights = torch.tensor([1.0, 2.0, 0.5, 1.0, 0.0])

    def cost(q: Tensor, t: Tensor, n: Tensor) -> Tensor:
        return reference(q, t, rows, n, negative_rows, log_expected, 0.3, weights)

    step, inputs = 1e-6, (queries, targets, negatives)
    ours = sampled_softmax(
        queries, targets, rows, Negatives(negatives, negative_rows, log_expected.float()), (0.3, weights)
    )
    gradients = torch.autograd.grad(ours, inputs)
    for position, gradient in enumerate(gradients):
        for place in [(0, 0), (2, 3), (4, 1)]:
            moved = [tensor.detach().clone() for tensor in inputs]
            moved[position][place] += step
            above = cost(*moved)
            moved[position][place] -= 2 * step
            slope = (above - cost(*moved)) / (2 * step)
            assert gradient[place].item() == pytest.approx(slope.item(), abs=1e-5)


def reference(
    q: Tensor, t: Tensor, rows: Tensor, n: Tensor, n_rows: Tensor, log_e: Tensor, tau: float, w: Tensor
) -> Tensor:
    """The formula, position by position."""
    total = torch.zeros((), dtype=q.dtype)
    for p in range(len(q)):
        positive = torch.dot(q[p], t[p]) / tau
        others = [torch.exp(torch.dot(q[p], n[j]) / tau - log_e[j]) for j in range(len(n)) if n_rows[j] != rows[p]]
        total = total + w[p] * (torch.log(positive.exp() + sum(others)) - positive)
    return total


def test_accidental_hits_do_not_count() -> None:
    queries, target = unit(1, 4), unit(1, 4, seed=1)
    negatives = torch.cat([target, target])
    ours = sampled_softmax(
        queries, target, torch.tensor([6]), Negatives(negatives, torch.tensor([6, 6]), torch.zeros(2)), (0.1, None)
    )
    assert ours.item() == 0.0


def test_the_sampled_denominator_estimates_the_full_one_without_bias() -> None:
    items, query = unit(50, 6), unit(1, 6, seed=1)
    probabilities = 0.5 * np.random.default_rng(0).dirichlet(np.ones(50)) + 0.01
    draws = 20_000
    rows = torch.from_numpy(np.random.default_rng(1).choice(50, draws, p=probabilities))
    log_expected = torch.from_numpy(np.log(draws * probabilities)).float()[rows]
    ours = sampled_softmax(
        query, items[[3]], torch.tensor([3]), Negatives(items[rows], rows, log_expected), (0.5, None)
    )
    full = F.cross_entropy(query @ items.T / 0.5, torch.tensor([3]))
    assert ours.item() == pytest.approx(full.item(), abs=0.03)


def test_under_autocast_the_loss_stays_fp32_and_close() -> None:
    queries, items = unit(40, 32).requires_grad_(), unit(200, 32, seed=1)
    rows = torch.randint(200, (40,))
    arguments = (queries, items[rows], rows, Negatives(items, torch.arange(200), torch.zeros(200)), (0.05, None))
    exact = sampled_softmax(*arguments)
    with torch.autocast("cpu", torch.bfloat16):
        rough = sampled_softmax(*arguments)
    assert rough.dtype == torch.float32
    assert rough.item() == pytest.approx(exact.item(), rel=0.01)
    (gradient,) = torch.autograd.grad(rough, queries)
    assert gradient.dtype == torch.float32
    assert F.cosine_similarity(gradient, torch.autograd.grad(exact, queries)[0]).min() > 0.99


def test_logits_of_any_size_do_not_overflow() -> None:
    vectors = unit(3, 4)
    ours = sampled_softmax(
        vectors,
        vectors,
        torch.arange(3),
        Negatives(unit(5, 4, seed=2), torch.arange(5) + 9, torch.full((5,), -200.0)),
        (1e-3, None),
    )
    assert math.isfinite(ours.item())


def test_without_gradient_only_the_loss_is_made() -> None:
    with torch.no_grad():
        ours = sampled_softmax(
            unit(3, 4), unit(3, 4), torch.arange(3), Negatives(unit(5, 4), torch.arange(5), torch.zeros(5)), (1.0, None)
        )
    assert not ours.requires_grad


def test_no_position_costs_nothing() -> None:
    nothing = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    ours = sampled_softmax(nothing, nothing, none, Negatives(unit(5, 4), torch.arange(5), torch.zeros(5)), (1.0, None))
    ours.backward()
    assert ours.item() == 0.0
