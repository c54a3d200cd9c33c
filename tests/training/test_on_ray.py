"""Ray Train for real: two workers over gloo, a worker killed, ZeRO-3 shards and the weights put together again."""

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from recsys_ray.core.errors import ConfigError, TrainingError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.on_ray import fit_on_ray

pytestmark = pytest.mark.ray
Settings = Callable[..., TrainingConfig]


def train_workers() -> Iterator[int]:
    """Process ids of the Ray Train workers of this process's own cluster."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            ours = os.getpid() in ancestors(int(folder.name))
        except OSError:
            continue
        if title.startswith(b"ray::RayTrainWorker") and ours:
            yield int(folder.name)


def ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def kill_after_first_checkpoint(directory: Path, over: threading.Event, killed: list[int]) -> None:
    while not over.wait(0.02):
        if any(directory.glob("run/checkpoint_*/progress.json")):
            victims = list(train_workers())
            if victims:
                killed.append(max(victims))
                os.kill(killed[0], signal.SIGKILL)
                return


@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_worker_changes_nothing(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    config = settings(workers=2, epochs=8, average=0.9)
    undisturbed = fit_on_ray(copy.deepcopy(towers), data, config, tmp_path / "undisturbed")

    over, killed = threading.Event(), list[int]()
    killer = threading.Thread(target=kill_after_first_checkpoint, args=(tmp_path / "disturbed", over, killed))
    killer.start()
    try:
        disturbed = fit_on_ray(towers, data, config, tmp_path / "disturbed")
    finally:
        over.set()
        killer.join()

    assert len(killed) == 1
    assert [record.loss for record in disturbed.records] == [record.loss for record in undisturbed.records]
    assert disturbed.best_epoch == undisturbed.best_epoch
    for name, tensor in undisturbed.weights.items():
        assert torch.equal(tensor, disturbed.weights[name])
        assert torch.equal(tensor, towers.state_dict()[name])


@pytest.mark.usefixtures("ray_cluster")
def test_zero_3_shards_over_the_workers_and_returns_whole_weights(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    config = settings(workers=2, epochs=2, engine="deepspeed", zero_stage=3)
    plain = settings(workers=0, epochs=2, batch_size=10)
    alone = copy.deepcopy(towers)
    from recsys_ray.training.fit import fit_in_process

    expected = fit_in_process(alone, data, plain)
    result = fit_on_ray(towers, data, config, tmp_path)

    (newest,) = sorted(tmp_path.glob("run/checkpoint_*"))[-1:]
    assert {file.name for file in newest.rglob("zero_pp_rank_*")} == {
        f"zero_pp_rank_{rank}_mp_rank_00_{part}_states.pt" for rank in range(2) for part in ("model", "optim")
    }
    assert {file.name for file in newest.glob("rng_*.pt")} == {"rng_0.pt", "rng_1.pt"}
    assert set(result.weights) == set(towers.state_dict())
    for name, tensor in expected.weights.items():
        torch.testing.assert_close(result.weights[name], tensor, atol=2e-3, rtol=0)
    assert result.records[-1].loss == pytest.approx(expected.records[-1].loss, abs=1e-3)


@pytest.mark.usefixtures("ray_cluster")
def test_a_nan_loss_stops_the_run_without_restarts(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    with torch.no_grad():
        towers.user_tower.start.fill_(torch.nan)
    with pytest.raises(TrainingError, match="loss of step 0 is nan"):
        fit_on_ray(towers, data, settings(workers=1), tmp_path)


def test_no_workers_is_refused(towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fit_in_process"):
        fit_on_ray(towers, data, settings(), tmp_path)
