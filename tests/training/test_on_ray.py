"""Ray Train for real: two workers over gloo, a worker killed, ZeRO-3 shards and the weights put together again."""

import copy
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recsys_ray.core.errors import ConfigError, TrainingError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import fit_in_process
from recsys_ray.training.on_ray import fit_on_ray
from recsys_ray.training.progress import EpochRecord

pytestmark = pytest.mark.ray
Settings = Callable[..., TrainingConfig]


def kill_one_after_its_first_checkpoint(chaos: ModuleType, directory: Path) -> int | None:
    """Kill a worker as soon as there is a checkpoint; None when there was none in time."""
    waiting = threading.Event()  # never set
    for _ in range(6000):
        victims = chaos.train_workers()
        if victims and any(directory.glob("*/run/checkpoint_*/progress.json")):
            os.kill(max(victims), signal.SIGKILL)
            return max(victims)
        waiting.wait(0.02)
    return None


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_changes_nothing(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path, chaos: ModuleType
) -> None:
    config = settings(workers=2, epochs=6, engine="deepspeed", zero_stage=2)
    models = [copy.deepcopy(towers), copy.deepcopy(towers)]
    watched: list[list[EpochRecord]] = [[], []]
    # Two runs side by side, of which one loses a worker, and with it the half of the optimizer that was its own.
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(fit_on_ray, model, data, config, tmp_path / str(name), watch=watched[name].append)
            for name, model in enumerate(models)
        ]
        killed = kill_one_after_its_first_checkpoint(chaos, tmp_path)
        one, other = (run.result() for run in runs)

    assert killed is not None
    assert [record.loss for record in one.records] == [record.loss for record in other.records]
    assert one.best_epoch == other.best_epoch
    for result, seen in zip((one, other), watched, strict=True):
        assert {record.epoch: record.validation for record in seen} == {r.epoch: r.validation for r in result.records}
    assert all(torch.equal(tensor, other.weights[name]) for name, tensor in one.weights.items())
    for model in models:
        assert all(torch.equal(tensor, one.weights[name]) for name, tensor in model.state_dict().items())


@pytest.mark.usefixtures("ray_cluster")
def test_zero_3_returns_whole_weights_and_a_nan_loss_ends_a_run_without_restarts(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    broken = copy.deepcopy(towers)
    with torch.no_grad():
        broken.user_tower.members[0].start.fill_(torch.nan)
    expected = fit_in_process(copy.deepcopy(towers), data, settings(epochs=2))

    # Both at once: most of their time is the start of processes.
    with ThreadPoolExecutor() as pool:
        sharded = settings(workers=2, epochs=2, engine="deepspeed", zero_stage=3)
        run = pool.submit(fit_on_ray, towers, data, sharded, tmp_path / "zero")
        failing = pool.submit(fit_on_ray, broken, data, settings(workers=1), tmp_path / "nan")
        result, failure = run.result(), failing.exception()

    assert isinstance(failure, TrainingError)
    assert "loss of step 0 is nan" in str(failure)
    newest = max(path for path in tmp_path.glob("zero/run/checkpoint_*") if path.is_dir())
    assert {file.name for file in newest.rglob("zero_pp_rank_*")} == {
        f"zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt" for rank in range(2) for part in ("model", "optim")
    }
    assert {file.name for file in newest.glob("rng_*.pt")} == {"rng_0.pt", "rng_1.pt"}
    assert set(result.weights) == set(towers.state_dict())
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(result.weights[name], tensor, atol=2e-3, rtol=0)
    assert result.records[-1].loss == pytest.approx(expected.records[-1].loss, abs=1e-3)


def test_no_workers_is_refused(towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fit_in_process"):
        fit_on_ray(towers, data, settings(), tmp_path)
