import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_ray.encoders.config import UserTowerConfig
from recsys_ray.encoders.user_tower import UserTower

POSITIONS = ("learned", "rotary")


def make_tower(positions: str) -> UserTower:
    config = UserTowerConfig.parse({"history": 12, "positions": positions})
    return UserTower(config, 8, 5).eval()


def pad(vectors: Tensor, width: int, filling: float) -> tuple[Tensor, Tensor]:
    """(H, D) items right-aligned in a batch of one."""
    padded = torch.full((1, width, vectors.shape[1]), filling)
    padded[0, width - len(vectors) :] = vectors
    mask = torch.zeros(1, width, dtype=torch.bool)
    mask[0, width - len(vectors) :] = True
    return padded, mask


@pytest.fixture
def items() -> Tensor:
    return F.normalize(torch.randn(5, 8), dim=-1)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("filling", [0.0, 7.0, float("nan")])
def test_padding_never_changes_a_result(positions: str, filling: float, items: Tensor):
    tower = make_tower(positions)
    tokens = torch.tensor([[1, 3, 0]])
    outputs = [tower(*pad(items, width, filling), tokens)[0, -5:] for width in (5, 6, 12, 20)]
    for output in outputs[1:]:
        assert torch.allclose(output, outputs[0], atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_newest_position_alone_is_the_last_of_all(positions: str, blocks: int, items: Tensor):
    tower = UserTower(UserTowerConfig.parse({"history": 12, "positions": positions, "blocks": blocks}), 8, 5).eval()
    vectors, mask = pad(items, 9, 7.0)
    vectors, mask = torch.cat([vectors, vectors]), torch.cat([mask, torch.zeros_like(mask)])  # and one without history
    tokens = torch.tensor([[1, 3, 0], [2, 0, 0]])
    alone = tower(vectors, mask, tokens, newest=True)
    assert alone.shape == (2, 1, 8)
    assert torch.allclose(alone, tower(vectors, mask, tokens)[:, -1:], atol=1e-6)


@pytest.mark.parametrize("positions", POSITIONS)
def test_padding_gets_no_gradient_and_no_nan(positions: str, items: Tensor):
    vectors, mask = pad(items, 9, float("nan"))
    vectors.requires_grad_()
    make_tower(positions).train()(vectors, mask, None)[:, -1, 0].sum().backward()
    gradient = vectors.grad
    assert gradient is not None
    assert (gradient[:, :4] == 0).all()
    assert torch.isfinite(gradient).all()
    assert (gradient[:, 4:] != 0).any()


@pytest.mark.parametrize("positions", POSITIONS)
def test_later_items_do_not_change_earlier_outputs(positions: str, items: Tensor):
    tower = make_tower(positions)
    vectors, mask = pad(items, 7, 0.0)
    changed = vectors.clone()
    changed[0, -1] = -changed[0, -1]
    before, after = tower(vectors, mask, None), tower(changed, mask, None)
    assert torch.allclose(before[:, :-1], after[:, :-1], atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1], atol=1e-2)


@pytest.mark.parametrize("positions", POSITIONS)
def test_outputs_are_unit_vectors_and_the_order_of_items_counts(positions: str, items: Tensor):
    tower = make_tower(positions)
    vectors, mask = pad(items, 5, 0.0)
    output = tower(vectors, mask, None)
    assert torch.allclose(output.norm(dim=-1), torch.ones(1, 5), atol=1e-5)
    swapped = vectors[:, [1, 0, 2, 3, 4]]
    assert not torch.allclose(tower(swapped, mask, None)[:, -1], output[:, -1], atol=1e-6)


def test_rotary_positions_are_relative(items: Tensor):
    """A prefix of a history answers as if it were the whole: training at every position is training for the last."""
    tower = make_tower("rotary")
    whole = tower(*pad(items, 5, 0.0), None)
    prefix = tower(*pad(items[:3], 5, 0.0), None)
    assert torch.allclose(whole[:, 2], prefix[:, -1], atol=1e-5)


def test_somebody_without_a_history_is_answered_by_attributes():
    tower = make_tower("learned")
    nothing = torch.zeros(2, 4, 8), torch.zeros(2, 4, dtype=torch.bool)
    output = tower(*nothing, torch.tensor([[1], [2]]))
    assert torch.isfinite(output).all()
    assert torch.allclose(output[:, 0], output[:, -1], atol=1e-5)
    assert not torch.allclose(output[0], output[1], atol=1e-4)


def test_unknown_attributes_change_nothing(items: Tensor):
    tower = make_tower("learned")
    history = pad(items, 5, 0.0)
    assert torch.equal(tower(*history, None), tower(*history, torch.zeros(1, 3, dtype=torch.long)))


def test_bf16_stays_close(items: Tensor):
    tower = make_tower("learned")
    history = pad(items, 8, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = tower(*history, None)
    assert rounded.dtype == torch.float32
    assert (F.cosine_similarity(rounded, tower(*history, None), dim=-1) > 0.999).all()


@pytest.mark.parametrize(("mean_events", "expected"), [(8.0, 0.4), (29.9, 0.4), (30.0, 0.2), (160.0, 0.2)])
def test_dropout_follows_the_length_of_the_histories(mean_events: float, expected: float) -> None:
    assert UserTowerConfig().suited(mean_events).dropout == expected
    assert UserTowerConfig(dropout=0.1).suited(mean_events).dropout == 0.1
