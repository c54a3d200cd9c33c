"""Train a few steps on one rank, and note the loss and the norm of the whole gradient at each."""

from itertools import count, islice
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, Optimizer

from recsys_ray.core.config import override
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.augment import Augmentation
from recsys_ray.training.batches import BatchMaker
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.engine import Engine
from recsys_ray.training.exposed import ExposedNegatives
from recsys_ray.training.fit import build_engine
from recsys_ray.training.loop import POPULARITY, history_length
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.parity.curves import Curve
from recsys_ray.training.step import train_step

EngineName = Literal["plain", "zero0", "zero1", "zero2", "zero3"]
ENGINES: tuple[EngineName, ...] = ("plain", "zero0", "zero1", "zero2", "zero3")


def settings_for(config: TrainingConfig, engine: EngineName, workers: int) -> TrainingConfig:
    """The run's settings as far as parity can be seen in them: fp32, gradients as they are, one engine."""
    stage = 0 if engine == "plain" else int(engine[-1])
    changes = {
        "engine": "plain" if engine == "plain" else "deepspeed",
        "zero_stage": stage,
        "workers": workers,
        "precision": "fp32",
        # A clipped gradient has one length whatever it was, and averages of weights are not what is trained.
        "clip_norm": None,
        "average": None,
        "min_workers": None,
        "universal_checkpoints": False,
        "offload": config.offload and stage > 0,
    }
    return override(config, changes)


def trace(
    model: TwoTower, data: TrainInput, config: TrainingConfig, engine: EngineName, place: tuple[int, int], steps: int
) -> Curve:
    """Train by SGD, without dropout; all ranks call it together.

    AdamW divides a gradient by its own size, so that it trains alike on one that is N times too long: SGD does not.
    Ranks drop out differently, so nothing is dropped out here.

    Args:
        model: Towers with their first weights, on their device.
        data: The run's data.
        config: See `settings_for`.
        engine: Which of its engines.
        place: (rank, world size).
        steps: How many; they go on into further epochs.
    """
    norm = _GradientNorm(config)
    trained = norm.build_engine(model)
    _without_dropout(trained)
    augmentation = Augmentation(model.config, data.words, config.seed)
    maker = BatchMaker(data, history_length(config, model), config, place, augmentation)
    popularity = POPULARITY if config.negatives_popularity is None else config.negatives_popularity
    sampler = NegativeSampler(data.train.item_counts(), config.negatives, popularity, config.seed)
    exposed = ExposedNegatives(data.shown, config)
    pairs = PairSampler(data.inputs, config, place)
    batches = ((epoch, windows) for epoch in count() for windows in maker.epoch(epoch))
    losses, norms = [], []
    for step, (epoch, windows) in enumerate(islice(batches, steps)):
        draw = exposed.add(sampler.draw(step), windows, step)
        batch = maker.make(windows, draw, pairs.draw(step), epoch)
        losses.append(train_step(trained, batch, model.config.temperature, step, config.learning_rate))
        norms.append(norm.take())
    return Curve(engine, place[1], tuple(losses), tuple(norms))


class _GradientNorm:
    """Sees the gradients where the optimizer reads them, whole or in shards, whatever the engine does before."""

    def __init__(self, config: TrainingConfig) -> None:
        self._config = config
        self._square = 0.0

    def build_engine(self, model: TwoTower) -> Engine:
        """The engine of the settings, with SGD in place of AdamW."""
        return build_engine(model, self._config, self._build)

    def take(self) -> float:
        """The norm over all ranks since it was last taken."""
        square = torch.tensor(self._square, dtype=torch.float64)
        self._square = 0.0
        if self._config.zero_stage:  # each rank has seen its own shard
            square = _summed(square)
        return float(square.sqrt())

    def _build(self, module: nn.Module) -> Optimizer:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        optimizer = SGD(trained, lr=self._config.learning_rate)
        optimizer.register_step_pre_hook(self._add)
        return optimizer

    def _add(self, optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._square += float(parameter.grad.double().square().sum())


def _summed(value: torch.Tensor) -> torch.Tensor:
    if not dist.is_initialized():
        return value
    value = value.to("cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(value)
    return value


def _without_dropout(engine: Engine) -> None:
    """Evaluation mode, in which gradients flow as ever."""
    wrapped: Any = engine.model
    wrapped.eval()
