"""The plan's bytes, against tensors really made: parameters, gradients, optimizer, activations, tables."""

import pytest
import torch
from torch import nn

from recsys_ray.core.config import override
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import UserTowerConfig
from recsys_ray.encoders.two_tower import build
from recsys_ray.encoders.user_tower import UserTower
from recsys_ray.planning.memory import Line, Need, Room, Sizes
from recsys_ray.planning.remedies import remedies
from recsys_ray.planning.skeleton import saved_bytes, skeleton
from recsys_ray.planning.stage_memory import plan_memory
from recsys_ray.planning.training_memory import (
    Parameters,
    activation_lines,
    count_parameters,
    state_lines,
)
from recsys_ray.presets import PRESETS
from recsys_ray.training.backbones import prepare_backbones
from recsys_ray.training.optimizer import build_adamw

SIZES = Sizes(items=500, users=300, events=4000)


@pytest.fixture
def full(text_checkpoint, image_checkpoint):
    """Both backbones trained with the towers."""
    return override(
        PRESETS["tiny"](),
        {
            "model.text": {"backbone": text_checkpoint, "mode": "full", "max_tokens": 24},
            "model.image": {"backbone": image_checkpoint, "mode": "full"},
        },
    )


def lines_of(lines):
    return {line.what: line.num_bytes for line in lines}


def nbytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def test_parameters_and_optimizer_are_those_of_the_model_really_built(full):
    model = build(full.model, Fields(), SIZES.items, {})
    optimizer = build_adamw(model, 1e-3, 0.01)
    sum(parameter.sum() for parameter in model.parameters() if parameter.requires_grad).backward()
    optimizer.step()
    moments = [value for state in optimizer.state.values() for value in state.values() if value.dim()]
    planned = lines_of(state_lines(full, count_parameters(full, SIZES)))
    assert planned["parameters"] == pytest.approx(nbytes(model.parameters()), rel=0.01)
    assert planned["gradients"] == pytest.approx(
        nbytes(p.grad for p in model.parameters() if p.grad is not None), rel=0.01
    )
    assert planned["optimizer"] == pytest.approx(nbytes(moments), rel=0.01)


@pytest.mark.parametrize("name", ["text", "image"])
def test_activations_are_those_that_autograd_really_saves(full, name):
    settings = getattr(full.model, name)
    backbone = load_backbone(settings).train()
    arrays = backbone.preprocess(["a b c d " * 20]) if name == "text" else backbone.blank()
    one = {key: torch.from_numpy(array) for key, array in arrays.items()}

    def measured(count):
        values = {key: tensor.repeat_interleave(count, 0) for key, tensor in one.items()}
        return saved_bytes(lambda: backbone(values).mean(), tuple(backbone.parameters()))

    assert skeleton(settings).saved_bytes == pytest.approx((measured(16) - measured(8)) / 8, rel=0.25)


def test_checkpointing_keeps_what_enters_each_layer(full):
    shape = skeleton(full.model.text)
    hidden = 24 * 64
    assert 3 * 2 * hidden <= shape.kept_bytes < 0.35 * shape.saved_bytes


def test_the_user_tower_is_within_a_quarter(full):
    history, sequences, dim = 50, 32, 64
    tower = UserTower(UserTowerConfig(dropout=0.2), dim, 1).train()
    vectors = torch.randn(sequences, history, dim)
    mask = torch.ones(sequences, history, dtype=torch.bool)
    measured = saved_bytes(lambda: tower(vectors, mask, None).mean(), tuple(tower.parameters()))
    config = override(
        full,
        {"model.dim": dim, "training.batch_size": sequences, "training.max_history": history, "training.workers": 0},
    )
    assert lines_of(activation_lines(config, SIZES))["user tower"] == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(
    ("precision", "stage", "a_parameter"),
    [
        ("fp32", 0, 16),
        ("fp32", 1, 8 + 8 / 4),
        ("fp32", 2, 4 + 12 / 4),
        ("fp32", 3, 16 / 4),
        ("bf16", 0, 16),
        ("bf16", 1, 4 + 12 / 4),
        ("bf16", 2, 2 + 14 / 4),
        ("bf16", 3, 16 / 4),
    ],
)
def test_zero_shards_as_the_paper_says(precision, stage, a_parameter):
    engine = {"training.engine": "deepspeed", "training.average": None, "training.precision": precision}
    config = override(PRESETS["cpu"](), {**engine, "training.zero_stage": stage, "training.workers": 4})
    lines = lines_of(state_lines(config, Parameters(1000, 1000)))
    assert sum(lines[name] for name in ("parameters", "gradients", "optimizer")) == 1000 * a_parameter


def test_every_stage_of_the_default_run_has_a_plan():
    stages = {need.stage.partition(":")[0] for need in plan_memory(PRESETS["cpu"](), SIZES)}
    assert stages == {"features", "train", "embed", "index", "channel", "evaluate", "serve"}


def test_without_the_towers_nothing_is_trained():
    config = override(PRESETS["cpu"](), {"channels.nearest": None})
    assert "train" not in {need.stage for need in plan_memory(config, SIZES)}


def test_what_does_not_fit_is_told_which_setting_makes_it_fit():
    config = override(PRESETS["cpu"](), {"training.workers": 4, "model.text": None, "model.image": None})
    sizes = Sizes(items=5_000_000, users=1_000_000, events=50_000_000)
    (need,) = (one for one in plan_memory(config, sizes) if one.stage == "train")
    room = Room(host_bytes=0.8 * need.num_bytes)
    found = remedies(config, sizes, need, room)
    (sharded,) = (one for one in found if "training.zero_stage" in one.changes)
    assert sharded.fits
    assert "--set training.zero_stage=" in str(sharded)
    again = override(config, sharded.changes)
    (better,) = (one for one in plan_memory(again, sizes) if one.stage == "train")
    assert better.num_bytes == sharded.num_bytes <= room.host_bytes


def test_a_gpu_of_unknown_size_is_neither_enough_nor_too_small():
    need = Need("train", "worker", "gpu", (Line("x", 1e9, ""),))
    assert Room(1e12).fits(need) is None
    assert Room(1e12, 2e9).fits(need) is True
    assert Room(1e12, 1e8).fits(need) is False


def test_a_module_without_parameters_saves_its_input():
    x = torch.ones(10, requires_grad=True)
    assert saved_bytes(lambda: nn.functional.gelu(x).sum(), ()) == 40


def test_adapters_are_those_that_peft_really_adds(full):
    lora = override(full, {"model.text.mode": "lora", "model.image": None})
    model = build(lora.model, Fields(), SIZES.items, {})
    prepare_backbones(model)
    counted = count_parameters(lora, SIZES)
    assert counted.held == pytest.approx(sum(p.numel() for p in model.parameters()), rel=0.01)
    assert counted.trained == pytest.approx(sum(p.numel() for p in model.parameters() if p.requires_grad), rel=0.01)


def test_gradient_caching_and_checkpoints_bound_what_a_backbone_keeps(full):
    def activations(**changes):
        return lines_of(activation_lines(override(full, changes), SIZES))["text activations"]

    whole = activations()
    assert activations(**{"training.items_at_once": 50}) == pytest.approx(whole / 10)
    assert activations(**{"model.text.checkpointing": True}) < whole


def test_offload_takes_the_optimizer_to_the_host():
    changes = {"training.engine": "deepspeed", "training.zero_stage": 2, "training.gpus": 1, "training.average": None}
    offload = override(PRESETS["cpu"](), {**changes, "training.offload": True})
    kinds = {one.kind: lines_of(one.lines) for one in plan_memory(offload, SIZES) if one.stage == "train"}
    assert "optimizer" in kinds["host"]
    assert "optimizer" not in kinds["gpu"]


def test_tables_updated_row_by_row_have_no_gradient_of_the_whole():
    config = override(PRESETS["tiny"](), {"model.dim": 16, "training.sparse_tables": 400})
    dense = lines_of(state_lines(override(config, {"training.sparse_tables": None}), count_parameters(config, SIZES)))
    parameters = count_parameters(config, SIZES)
    assert parameters.sparse == 16 * SIZES.items
    planned = lines_of(state_lines(config, parameters))
    assert planned["gradients"] == 4 * (parameters.trained - parameters.sparse)
    assert planned["optimizer"] == dense["optimizer"]
