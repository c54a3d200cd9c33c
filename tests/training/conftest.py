"""Small towers and events; shapes and types of every tensor in training are checked while its tests run."""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

with install_import_hook("recsys_ray.training", "beartype.beartype"):
    import recsys_ray.training.fit  # noqa: F401

from recsys_ray.core.arrays import Ragged
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput, Validation
from recsys_ray.training.fit import run_rank
from recsys_ray.training.loop import Hooks
from recsys_ray.training.progress import EpochRecord, TrainResult


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Small tensors on many threads are slow, the more so beside other work."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> ModuleType:
    return _module("parity_worker")


@pytest.fixture(scope="session")
def chaos() -> ModuleType:
    return _module("chaos")


@pytest.fixture
def towers(small: ModuleType) -> TwoTower:
    return small.small_towers()


@pytest.fixture(scope="session")
def data(small: ModuleType) -> TrainInput:
    """300 random events; each of the 30 users is asked, by the last three items, for the first one."""
    data: TrainInput = small.small_data()
    histories = data.train.histories
    empty = Ragged.empty(len(histories))
    targets = Ragged.of([histories[row][:1] for row in range(len(histories))])
    queries = Validation(np.arange(len(histories)), histories.last(3), empty, targets)
    return replace(data, validation=queries)


@pytest.fixture(scope="session")
def settings() -> Callable[..., TrainingConfig]:
    defaults: dict[str, Any] = {
        "workers": 0,
        "precision": "fp32",
        "batch_size": 10,
        "negatives": 15,
        "epochs": 4,
        "patience": None,
    }
    return lambda **changes: TrainingConfig.parse({**defaults, **changes})


@pytest.fixture(scope="session")
def cut_within_an_epoch() -> Callable[[TwoTower, TrainInput, TrainingConfig, Path], TrainResult]:
    """A run that goes on from the last checkpoint but one, which `checkpoint_steps` puts inside an epoch."""

    def cut(model: TwoTower, data: TrainInput, config: TrainingConfig, folder: Path) -> TrainResult:
        kept: list[Path] = []

        def keep(_: EpochRecord | None, write: Callable[[Path], None]) -> None:
            kept.append(folder / str(len(kept)))
            kept[-1].mkdir()
            write(kept[-1])

        run_rank(copy.deepcopy(model), data, config, (0, 1), Hooks(keep=keep))
        return run_rank(copy.deepcopy(model), data, config, (0, 1), Hooks(resume=kept[-2]))

    return cut
