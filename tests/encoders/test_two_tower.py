from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.encoders.two_tower import (
    TrainBatch,
    TwoTower,
    build,
    load_towers,
    read_space_id,
    save_towers,
    saved_backbones,
    space_id,
    trained_backbones,
)


def make_model(**changes: object) -> TwoTower:
    return build(TwoTowerConfig.parse({"dim": 8, **changes}), Fields(), 10, {"text": 6})


def make_inputs() -> ItemInputs:
    values = {"text": {"vector": torch.randn(10, 6)}, "id": {"row": torch.arange(10)}}
    return ItemInputs(values, {name: torch.ones(10, dtype=torch.bool) for name in values})


def make_batch() -> TrainBatch:
    history = torch.tensor([[-1, 0, 1], [2, 3, 4]])
    targets = torch.tensor([[0, 1, -1], [3, 4, 5]])
    return TrainBatch(make_inputs(), history, targets, torch.arange(6, 10))


def test_forward_answers_for_the_supervised_positions_in_row_order():
    model = make_model().eval()
    batch = make_batch()
    queries, targets, negatives, pairs, missed = model(batch)
    items = model.item_tower(batch.items)
    outputs = model.user_tower(items[batch.history.clamp(min=0)], batch.history >= 0, None)
    assert torch.allclose(queries.flatten(1), torch.cat([outputs[0, :2], outputs[1]]), atol=1e-6)
    assert torch.equal(targets.flatten(1), items[[0, 1, 3, 4, 5]])
    assert torch.equal(negatives.flatten(1), items[6:])
    assert pairs.shape == (2, 0, items.shape[1])
    assert missed.shape == (4,)
    *_, pairs, _ = model(replace(batch, pairs=torch.tensor([[3, 1], [0, 9]])))
    assert torch.equal(pairs, items[torch.tensor([[3, 1], [0, 9]])])


def test_a_few_steps_learn_the_next_item():
    model = make_model(user={"dropout": 0.0}).train()
    batch = make_batch()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(60):
        queries, targets, negatives = (vectors.flatten(1) for vectors in model(batch)[:3])
        logits = (
            torch.cat([(queries * targets).sum(1, keepdim=True), queries @ negatives.T], 1) / model.config.temperature
        )
        loss = torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 < losses[0]


def test_saved_towers_load_equal_and_keep_their_space(tmp_path: Path):
    model = make_model().eval()
    space = save_towers(tmp_path, model, {})
    loaded = load_towers(tmp_path)
    inputs = make_inputs()
    assert torch.equal(loaded.item_tower(inputs), model.item_tower(inputs))
    assert space == space_id(loaded, {}) == read_space_id(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training


def test_the_space_follows_weights_settings_and_backbones():
    model = make_model()
    spaces = {space_id(model, {}), space_id(model, {"text": "a"}), space_id(make_model(), {})}
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    spaces.add(space_id(model, {}))
    assert len(spaces) == 4


def test_broken_folders_are_refused(tmp_path: Path):
    with pytest.raises(ArtifactError, match=r"tower\.json"):
        load_towers(tmp_path)
    save_towers(tmp_path, make_model(), {})
    text = (tmp_path / "tower.json").read_text()
    (tmp_path / "tower.json").write_text(text.replace('"blocks": 2', '"blocks": 3'))
    with pytest.raises(ArtifactError, match="only one of them has"):
        load_towers(tmp_path)


def test_wrong_settings_name_what_is_allowed():
    with pytest.raises(ConfigError, match=r"multiple of user\.heads"):
        TwoTowerConfig.parse({"dim": 9})
    with pytest.raises(ConfigError, match="no modality"):
        make_model(text=None, id=None)
    with pytest.raises(ConfigError, match="no vector column"):
        make_model(vectors={"columns": ["sound"]})


@pytest.mark.parametrize("architecture", ["vit", "dinov2", "clip", "siglip"])
def test_everything_that_is_trained_gets_a_gradient(
    architecture: str,
    text_checkpoint: Path,
    image_checkpoint: Callable[[str], Path],
    catalogue: tuple[pa.Table, Fields],
):
    """DDP and ZeRO wait for the gradient of every trained weight."""
    items, fields = catalogue
    text = {"backbone": str(text_checkpoint), "mode": "full"}
    image = {"backbone": str(image_checkpoint(architecture)), "mode": "full"}
    config = TwoTowerConfig.parse({"dim": 8, "text": text, "image": image})
    model = build(config, fields, len(items), {}).train()
    inputs = build_item_inputs(items, fields, config, {}, trained_backbones(model))
    (model.item_tower(inputs) * torch.randn(8)).sum().backward()
    lacking = [
        name for name, weight in model.item_tower.named_parameters() if weight.requires_grad and weight.grad is None
    ]
    assert lacking == []


def test_a_trained_backbone_learns_and_travels_with_the_towers(
    text_checkpoint: Path, tmp_path: Path, catalogue: tuple[pa.Table, Fields]
):
    items, fields = catalogue
    config = TwoTowerConfig.parse(
        {"dim": 8, "text": {"backbone": str(text_checkpoint), "mode": "full"}, "image": None, "id": None}
    )
    model = build(config, fields, len(items), {})
    inputs = build_item_inputs(items, fields, config, {}, trained_backbones(model))
    before = load_text_backbone(str(text_checkpoint))
    vectors = model.train().item_tower(inputs)
    (vectors * torch.randn(8)).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    model.eval()
    (tmp_path / "towers").mkdir()
    save_towers(tmp_path / "towers", model, {})
    loaded = load_towers(tmp_path / "towers")
    assert torch.allclose(loaded.item_tower(inputs), model.item_tower(inputs), atol=1e-6)
    saved = load_text_backbone(saved_backbones(tmp_path / "towers")["text"])
    assert saved.id != before.id
    assert not torch.equal(
        torch.from_numpy(saved.encode(["red shoe"], 1)), torch.from_numpy(before.encode(["red shoe"], 1))
    )
