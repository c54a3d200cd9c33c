import pytest
import torch

from recsys_ray.encoders.dropout import Dropout


@pytest.mark.parametrize("probability", [0.1, 0.2, 0.4, 0.75])
def test_it_hides_the_share_and_keeps_the_mean(probability: float) -> None:
    torch.manual_seed(0)
    x = torch.ones(400, 501)
    y = Dropout(probability)(x)
    assert (y == 0).float().mean() == pytest.approx(probability, abs=0.004)
    assert y.mean() == pytest.approx(1.0, abs=0.01)
    assert y.unique().numel() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_flow_through_what_stays(dtype: torch.dtype) -> None:
    x = torch.randn(50, 7, dtype=dtype, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.dtype == dtype
    assert torch.equal(x.grad, torch.where(y == 0, 0, 2).to(dtype))


def test_elements_fall_out_independently() -> None:
    torch.manual_seed(0)
    hidden = (Dropout(0.5)(torch.ones(20_000, 16)) == 0).float()
    correlations = torch.corrcoef(hidden.T) - torch.eye(16)
    assert correlations.abs().max() < 0.05


def test_the_generator_of_torch_decides() -> None:
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(Dropout(0.3)(torch.ones(1000)))
    assert torch.equal(*draws)


def test_nothing_falls_out_in_evaluation_or_at_probability_zero() -> None:
    x = torch.randn(10)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
