"""Curves from Ray Train workers: real processes, on whatever cluster is connected."""

import gc
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from recsys_ray.core.errors import RecsysError, TrainingError
from recsys_ray.core.progress import following, say_into
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput, load_input, save_input
from recsys_ray.training.fit import take_towers
from recsys_ray.training.handover import Handover, hand_over
from recsys_ray.training.parity.curves import Curve
from recsys_ray.training.parity.trace import EngineName, settings_for, trace

_LINES = "lines.txt"


def curves_on_ray(
    model: TwoTower,
    data: TrainInput,
    config: TrainingConfig,
    runs: Sequence[tuple[int, Sequence[EngineName]]],
    steps: int,
    directory: Path,
) -> list[Curve]:
    """Train a few steps by each engine, each time from the same first weights.

    Args:
        model: Towers with their first weights.
        data: What to train on.
        config: The run's settings.
        runs: Numbers of workers, and the engines that each trains by, one after the other.
        steps: Steps of each.
        directory: On storage that all nodes share; emptied first and removed afterwards.

    Raises:
        TrainingError: When a worker fails.
        ConfigError: When an engine cannot train so.
    """
    directory = directory.resolve()
    shutil.rmtree(directory, ignore_errors=True)
    for name in ("model", "input"):
        (directory / name).mkdir(parents=True)
    handed = hand_over(model, directory / "model")
    save_input(directory / "input", data)
    try:
        with following(directory / _LINES):
            kept = (handed, directory)
            return [curve for number, run in enumerate(runs) for curve in _run(config, *run, steps, kept, number)]
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _run(
    config: TrainingConfig,
    workers: int,
    engines: Sequence[EngineName],
    steps: int,
    kept: tuple[Handover, Path],
    number: int,
) -> list[Curve]:
    handed, directory = kept
    settings = {
        "towers": handed,
        "directory": str(directory),
        "steps": steps,
        "configs": [(engine, settings_for(config, engine, workers).model_dump()) for engine in engines],
    }
    resources = {"CPU": float(config.cpus), **({"GPU": float(config.gpus)} if config.gpus else {})}
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # its return value comes back in the result
        train_loop_config=settings,
        torch_config=TorchConfig(backend="nccl" if config.gpus else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=bool(config.gpus), resources_per_worker=resources),
        run_config=RunConfig(
            name=f"run{number}", storage_path=str(directory), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        answer: Any = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingError(f"the check of parity failed on {workers} workers: {error}") from error
    if isinstance(answer.return_value, str):
        raise TrainingError(answer.return_value)
    return [Curve(*values) for values in answer.return_value]


def _work(settings: dict[str, Any]) -> list[tuple[Any, ...]] | str:
    """One worker's curves; or why there are none, where that is the user's to mend."""
    context = ray.train.get_context()
    place = (context.get_world_rank(), context.get_world_size())
    directory = Path(settings["directory"])
    say = partial(say_into, directory / _LINES)
    data = load_input(directory / "input")
    curves = []
    try:
        for engine, values in settings["configs"]:
            config = TrainingConfig.parse(values)
            torch.set_num_threads(config.cpus)
            model = take_towers(settings["towers"], config, get_device())
            curve = trace(model, data, config, engine, place, settings["steps"])
            curves.append((curve.engine, curve.workers, curve.losses, curve.norms))
            if place[0] == 0:
                say(f"{curve.name}: loss {curve.losses[0]:.4f} to {curve.losses[-1]:.4f} in {len(curve.losses)} steps")
            del model
            gc.collect()  # engines hold themselves in circles; a large one must be gone before the next
    except RecsysError as error:
        return str(error)
    return curves
