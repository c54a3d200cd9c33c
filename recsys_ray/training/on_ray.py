"""The same training as Ray Train workers: checkpoints of all ranks, restart after a lost worker."""

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.train
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from recsys_ray.core.errors import ConfigError, RecsysError, TrainingError
from recsys_ray.core.progress import following, say_into
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.checkpoint import read_result
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput, load_input, save_input
from recsys_ray.training.fit import run_rank, take_towers
from recsys_ray.training.handover import hand_over
from recsys_ray.training.loop import Hooks, Watch
from recsys_ray.training.progress import EpochRecord, TrainResult

Written = TypeVar("Written")

CHECKPOINTS_KEPT = 2
_LINES = "lines.txt"  # what rank 0 says, for the driver to pass on
_RECORDS = "records.jsonl"  # what rank 0 measured, one line an epoch


def fit_on_ray(
    model: TwoTower,
    data: TrainInput,
    config: TrainingConfig,
    directory: Path,
    stop_after: int | None = None,
    watch: Watch | None = None,
) -> TrainResult:
    """Train on ``config.workers`` Ray Train workers. The model ends with the weights of the result.

    A worker that dies is replaced and training goes on from the newest checkpoint, to the same weights; so does a
    second call with the same directory after the driver itself died.

    Args:
        model: Towers with their first weights.
        data: What to train on.
        config: The settings, with ``workers`` of at least 1.
        directory: The run's own folder, on storage that all nodes share; it gets the model, the data and the
            checkpoints. What is in it already must come from the same model, data and settings.
        stop_after: Train exactly so many epochs of the schedule, see `Hooks`.
        watch: Takes each epoch's record, here and not in the workers.

    Raises:
        ConfigError: When no Ray cluster is connected, or ``workers`` is 0.
        TrainingError: When the run cannot go on: a loss that is not finite, or more lost workers than allowed.
    """
    if not config.workers:
        raise ConfigError("training.workers", 0, "at least 1 on Ray; fit_in_process trains without")
    if not ray.is_initialized():
        raise ConfigError("ray", "no connection", "a connected cluster: see recsys_ray.core.on_ray.connected")
    directory = directory.resolve()
    settings = {
        "towers": _fresh(directory / "model", partial(hand_over, model)),
        "input": str(directory / "input"),
        "config": config.model_dump(),
        "stop_after": stop_after,
        "lines": str(directory / _LINES),
        "records": str(directory / _RECORDS),
    }
    _fresh(directory / "input", lambda path: save_input(path, data))
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # its return value comes back in the result
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if config.gpus else "gloo"),
        scaling_config=_scaling(config),
        run_config=RunConfig(
            name="run",
            storage_path=str(directory),
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    with following(directory / _LINES), following(directory / _RECORDS, partial(_take_record, watch)):
        result = _read(_fit(trainer))
    model.load_state_dict(result.weights)
    return result


def _scaling(config: TrainingConfig) -> ScalingConfig:
    resources = {"CPU": float(config.cpus)}
    if config.gpus:
        resources["GPU"] = float(config.gpus)
    workers: Any = config.workers if config.min_workers is None else (config.min_workers, config.workers)
    return ScalingConfig(num_workers=workers, use_gpu=bool(config.gpus), resources_per_worker=resources)


def _fit(trainer: TorchTrainer) -> Any:
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"training on Ray failed, the last checkpoint stands: {error}") from error


def _read(result: Any) -> TrainResult:
    """The result of a Ray Train run; its type there does not know the return value yet."""
    if result.return_value is not None:
        raise TrainingError(str(result.return_value))
    if result.checkpoint is None:
        raise TrainingError(f"the run in {result.path} ended without a checkpoint")
    with result.checkpoint.as_directory() as path:
        return read_result(Path(path))


def _fresh(path: Path, write: Callable[[Path], Written]) -> Written:
    """Write a folder anew: an earlier call may have left one."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return write(path)


def _work(settings: dict[str, Any]) -> str | None:
    """One worker's run; returns why it stopped, where starting again would not help."""
    context = ray.train.get_context()
    place = (context.get_world_rank(), context.get_world_size())
    config = TrainingConfig.parse(settings["config"])
    torch.set_num_threads(config.cpus)
    model = take_towers(settings["towers"], config, get_device())
    data = load_input(Path(settings["input"]))
    newest = ray.train.get_checkpoint()
    hooks = Hooks(
        _keep,
        stop_after=settings["stop_after"],
        say=partial(say_into, Path(settings["lines"])),
        watch=lambda record: say_into(Path(settings["records"]), json.dumps(asdict(record))),
    )
    try:
        if newest is None:
            run_rank(model, data, config, place, hooks)
        else:
            with newest.as_directory() as path:
                run_rank(model, data, config, place, replace(hooks, resume=Path(path)))
    except RecsysError as error:
        return str(error)
    return None


def _take_record(watch: Watch | None, line: str) -> None:
    if watch is not None:
        watch(EpochRecord(**json.loads(line)))


def _keep(record: EpochRecord | None, write: Callable[[Path], None]) -> None:
    """Report the epoch with this rank's part of the checkpoint; Ray Train puts the parts of all ranks together."""
    metrics: dict[str, float] = {}
    if record is not None:
        metrics = {"epoch": record.epoch, "loss": record.loss, "samples_per_s": record.samples_per_s}
        metrics |= record.validation
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        ray.train.report(metrics, checkpoint=Checkpoint.from_directory(directory))
