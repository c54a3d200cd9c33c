import pytest
import torch

from recsys_ray.core.errors import ConfigError
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TrainBatch, TwoTower, build

DIM, ITEMS = 8, 10


def make_model(*members: str) -> TwoTower:
    return build(TwoTowerConfig.parse({"dim": DIM, "members": members}), Fields(), ITEMS, {"text": 6}).eval()


def make_inputs() -> ItemInputs:
    torch.manual_seed(1)
    known = torch.ones(ITEMS, dtype=torch.bool)
    known[7:] = False  # the last three items have a text and no id, the very last has neither
    texts = torch.ones(ITEMS, dtype=torch.bool)
    texts[9] = False
    values = {"text": {"vector": torch.randn(ITEMS, 6)}, "id": {"row": torch.arange(ITEMS)}}
    return ItemInputs(values, {"text": texts, "id": known})


def test_a_dot_product_is_the_mean_of_the_members_cosines() -> None:
    model = make_model("all", "content", "id")
    items = model.item_tower(make_inputs())[:7]
    history = torch.tensor([[0, 1, 2], [3, 4, 5]])
    queries = model.user_tower(items[history], torch.ones(2, 3, dtype=torch.bool), None)[:, -1]
    assert torch.allclose(items.norm(dim=1), torch.ones(7), atol=1e-5)
    assert torch.allclose(queries.norm(dim=1), torch.ones(2), atol=1e-5)
    cosines = []
    for tower, user in zip(model.item_tower.towers, model.user_tower.members, strict=True):
        own = tower(make_inputs())[0][:7]
        cosines.append(user(own[history], torch.ones(2, 3, dtype=torch.bool), None)[:, -1] @ own.T)
    assert torch.allclose(queries @ items.T, torch.stack(cosines).mean(0), atol=1e-5)


def test_who_knows_nothing_of_an_item_says_nothing() -> None:
    vectors = make_model("content", "id").item_tower(make_inputs())
    assert (vectors[7:9, DIM:] == 0).all()
    assert torch.allclose(vectors[7:9, :DIM].norm(dim=1), torch.ones(2), atol=1e-5)
    assert (vectors[9] != 0).all()


def test_members_are_trained_by_their_own_part_alone() -> None:
    model = make_model("all", "id").train()
    history, targets = torch.tensor([[-1, 0, 1]]), torch.tensor([[0, 1, 2]])
    queries, *_ = model(TrainBatch(make_inputs(), history, targets, torch.arange(3, 6)))
    queries[:, 1].sum().backward()
    first, second = ([p.grad for p in tower.parameters()] for tower in model.user_tower.members)
    assert all(grad is None or not grad.any() for grad in first)
    assert any(grad is not None and grad.any() for grad in second)


def test_a_member_without_any_modality_is_refused() -> None:
    with pytest.raises(ConfigError, match="member 'content'"):
        build(TwoTowerConfig.parse({"dim": DIM, "members": ["content"]}), Fields(), ITEMS, {})


def test_a_backbone_is_trained_by_one_member() -> None:
    with pytest.raises(ConfigError, match="one member where text is trained"):
        TwoTowerConfig.parse({"members": ["all", "content"], "text": {"mode": "full"}})
