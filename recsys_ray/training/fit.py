"""What every place that trains has in common: the engine by the configuration, the device, the seed, and the loop."""

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.optim import Optimizer

from recsys_ray.core.artifacts import fsync
from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.threads import torch_threads
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.backbones import prepare_backbones
from recsys_ray.training.checkpoint import seed_rank
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.deepspeed_engine import DeepSpeedEngine, Elements, Zero, shard_by
from recsys_ray.training.engine import BuildOptimizer, Engine, PlainEngine
from recsys_ray.training.handover import Handover, Place, take
from recsys_ray.training.loop import Hooks, Watch, train
from recsys_ray.training.optimizer import build_adamw
from recsys_ray.training.progress import EpochRecord, TrainResult
from recsys_ray.training.tables import tables_above


def fit_in_process(
    model: TwoTower,
    data: TrainInput,
    config: TrainingConfig,
    directory: Path | None = None,
    stop_after: int | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train in this process, without Ray. The model ends with the weights of the result.

    Args:
        model: Towers with their first weights.
        data: What to train on.
        config: The settings, with ``workers`` 0.
        directory: Keeps the newest checkpoint; a run that was cut goes on from it. None keeps none.
        stop_after: Train exactly so many epochs of the schedule, see `Hooks`.
        watch: Takes each epoch's record.
    """
    if config.workers:
        raise ConfigError("training.workers", config.workers, "0 in process; fit_on_ray takes more")
    hooks = Hooks(stop_after=stop_after, watch=watch)
    if directory is not None:
        keeper = LocalCheckpoints(directory)
        hooks = replace(hooks, keep=keeper.keep, resume=keeper.newest())
    device = torch.device("cuda" if config.gpus else "cpu")
    with torch_threads(config.cpus):
        result = run_rank(copy.deepcopy(model).to(device), data, config, (0, 1), hooks)
    model.load_state_dict(result.weights)
    return result


def take_towers(handed: Handover, config: TrainingConfig, device: torch.device) -> TwoTower:
    """A worker's towers: whole and on the device, or at ZeRO stage 3 its shards of all parameters, never the whole."""
    return take(handed, placing(handed, config)).to(device)


def placing(handed: Handover, config: TrainingConfig) -> Place:
    """What the engine of these settings does to each parameter as it comes."""
    if config.zero_stage < 3:
        return lambda _: None
    return shard_by(Elements.of(handed.outline), zero_of(config))


def run_rank(
    model: TwoTower, data: TrainInput, config: TrainingConfig, place: tuple[int, int], hooks: Hooks
) -> TrainResult:
    """One rank's training, from the seed to the result. The model is the engine's from here on: adapters go into it."""
    seed_rank(config.seed, place[0])
    prepare_backbones(model)
    return train(build_engine(model, config), model, data, config, place, hooks)


def build_engine(model: TwoTower, config: TrainingConfig, build_optimizer: BuildOptimizer | None = None) -> Engine:
    """The engine that the configuration names, with AdamW where nothing else is given; large tables only by that."""
    if config.engine == "deepspeed":
        return DeepSpeedEngine(model, build_optimizer or partial(_adamw, config), zero_of(config))
    settings = config.precision, config.clip_norm, config.averaging
    if build_optimizer is not None:
        return PlainEngine(model, build_optimizer, *settings)
    sparse = tables_above(model, config.sparse_above, config.weight_decay)
    return PlainEngine(model, partial(_adamw, config, without=tuple(sparse)), *settings, sparse)


def _adamw(config: TrainingConfig, module: nn.Module, without: tuple[str, ...] = ()) -> Optimizer:
    return build_adamw(module, config.learning_rate, config.weight_decay, without)


def zero_of(config: TrainingConfig) -> Zero:
    """What DeepSpeed is told."""
    universal = config.universal_checkpoints
    return Zero(config.zero_stage, config.precision, config.clip_norm, config.offload, universal)


@dataclass(frozen=True)
class LocalCheckpoints:
    """The newest checkpoint of a run in one process, in a folder."""

    directory: Path

    def newest(self) -> Path | None:
        """Where it is, if there is one."""
        found = [self.directory / name for name in ("newest", "older") if (self.directory / name).is_dir()]
        return found[0] if found else None

    def keep(self, _: EpochRecord | None, write: Callable[[Path], None]) -> None:
        """Write aside, then take the older one's place; a cut between the two renames leaves the older one beside.

        Only this checkpoint's files are waited for: the disk may have much else to write.
        """
        aside, newest, older = (self.directory / name for name in ("aside", "newest", "older"))
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        for path in (*aside.rglob("*"), aside):
            fsync(path)
        shutil.rmtree(older, ignore_errors=True)
        if newest.is_dir():
            newest.rename(older)
        aside.rename(newest)
        fsync(self.directory)
