"""Runs that are killed at every bad moment: afterwards the weights are those of an undisturbed run, to the bit.

The long forms (`make chaos`) are marked `chaos`.
"""

import copy
import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from recsys_ray.core.errors import TrainingError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.batches import BatchMaker
from recsys_ray.training.checkpoint import read_result
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import LocalCheckpoints, fit_in_process
from recsys_ray.training.on_ray import fit_on_ray
from recsys_ray.training.progress import TrainResult

pytestmark = pytest.mark.slow

DRIVER = Path(__file__).with_name("chaos.py")
Driver = Callable[[list[str], Path, TrainingConfig], "subprocess.Popen[bytes]"]
Settings = Callable[..., TrainingConfig]
WaitUntil = Callable[[Callable[[], object]], None]


@pytest.fixture
def driver() -> Iterator[Driver]:
    """Starts drivers, of which none outlives its test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(way: list[str], out: Path, config: TrainingConfig) -> subprocess.Popen[bytes]:
        out.mkdir(exist_ok=True)
        command = [sys.executable, str(DRIVER), *way, str(out), config.model_dump_json()]
        with (out.parent / f"{out.name}.log").open("ab") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            started.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def log_of(out: Path) -> str:
    return (out.parent / f"{out.name}.log").read_text()[-4000:]


def outcome_of(process: subprocess.Popen[bytes], out: Path) -> dict[str, Any]:
    assert process.wait(timeout=240) == 0, log_of(out)
    outcome: dict[str, Any] = json.loads((out / "result.json").read_text())
    return outcome


@pytest.fixture
def address(ray_cluster: None) -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def test_a_loss_that_is_no_number_stops_at_the_checkpoint_before_it(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    """An event whose weight is no number ends the run before its step; with the data mended it goes on from there."""
    config = settings(event_weights=True, checkpoint_steps=1)
    undisturbed = fit_in_process(copy.deepcopy(towers), data, config)
    steps = list(BatchMaker(data, 8, config, (0, 1)).epoch(0))
    weights = data.train.weights.copy()
    weights[steps[4].ends[0] - 1] = np.nan
    broken = replace(data, train=replace(data.train, weights=weights))

    with pytest.raises(TrainingError, match="loss of step 4 is nan"):
        fit_in_process(copy.deepcopy(towers), broken, config, tmp_path)
    assert json.loads((tmp_path / "newest" / "progress.json").read_text())["step"] == 4
    resumed = fit_in_process(towers, data, config, tmp_path)
    assert_alike(resumed, undisturbed)


@pytest.mark.parametrize("way", ["writing", "renaming"])
def test_a_process_killed_at_a_checkpoint_goes_on_from_the_one_before(
    chaos: ModuleType, settings: Settings, tmp_path: Path, driver: Driver, way: str
) -> None:
    config, out = settings(), tmp_path / "out"
    model, data = chaos.towers_and_data(chaos.FEW)
    undisturbed = fit_in_process(copy.deepcopy(model), data, config)

    assert driver([way], out, config).wait(timeout=120) == -signal.SIGKILL
    found = LocalCheckpoints(out).newest()
    assert found is not None
    assert found.name == {"writing": "newest", "renaming": "older"}[way]
    assert len(read_result(found).records) == 1
    assert (out / "aside").exists()
    assert_alike(fit_in_process(model, data, config, out), undisturbed)


@pytest.mark.ray
@pytest.mark.parametrize("victims", ["driver and worker", pytest.param("worker", marks=pytest.mark.chaos)])
def test_killed_while_a_checkpoint_is_uploading_it_goes_on_from_the_newest_whole_one(
    chaos: ModuleType,
    settings: Settings,
    tmp_path: Path,
    address: str,
    driver: Driver,
    wait_until: WaitUntil,
    victims: str,
) -> None:
    config, out = settings(epochs=8, workers=1), tmp_path / "out"
    model, data = chaos.towers_and_data()
    undisturbed = fit_in_process(model, data, settings(epochs=8))
    workers: list[int] = []

    process = driver(["join", address], out, config)
    wait_until(lambda: workers.extend(chaos.stopped_while_uploading(out)) or workers or process.poll() is not None)
    assert workers, log_of(out)
    done = len(read_result(max(chaos.whole_checkpoints(out))).records)
    if victims != "worker":
        process.kill()
        process.wait()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    if victims != "worker":
        wait_until(lambda: not chaos.train_workers())
        process = driver(["join", address], out, config)
    assert outcome_of(process, out) == chaos.outcome(undisturbed)
    assert f"going on after epoch {done}:" in (out / "lines.txt").read_text()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_where_there_is_room_for_one_worker_one_trains(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    expected = fit_in_process(copy.deepcopy(towers), data, settings(cpus=3))
    # Two of three CPUs each are wanted, and the cluster has four.
    result = fit_on_ray(towers, data, settings(workers=2, min_workers=1, cpus=3), tmp_path)
    assert (tmp_path / "run").is_dir()
    assert_alike(result, expected)


@pytest.fixture(scope="module")
def undisturbed_on_two(
    ray_cluster: None, chaos: ModuleType, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    outcome: dict[str, Any] = chaos.outcome(on_two(chaos, settings, tmp_path_factory.mktemp("undisturbed")))
    return outcome


def on_two(chaos: ModuleType, settings: Settings, out: Path) -> TrainResult:
    return fit_on_ray(*chaos.towers_and_data(chaos.FEW), settings(workers=2, checkpoint_steps=1), out)


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_killed_at_a_random_step(
    chaos: ModuleType,
    settings: Settings,
    tmp_path: Path,
    undisturbed_on_two: dict[str, Any],
    wait_until: WaitUntil,
    seed: int,
) -> None:
    draw = random.Random(seed)
    kept, victim = draw.randrange(1, 20), draw.randrange(2)
    with ThreadPoolExecutor() as pool:
        run = pool.submit(on_two, chaos, settings, tmp_path)
        kill_after(chaos, tmp_path, run, kept, victim, wait_until)
        assert chaos.outcome(run.result()) == undisturbed_on_two


def kill_after(
    chaos: ModuleType, out: Path, run: "Future[TrainResult]", kept: int, victim: int, wait_until: WaitUntil
) -> None:
    """SIGKILL, once so many checkpoints have been begun."""
    seen: set[Path] = set()

    def enough() -> bool:
        seen.update(out.glob("run/checkpoint_*"))
        return len(seen) > kept or run.done()

    wait_until(enough)
    assert not run.done()
    os.kill(chaos.train_workers()[victim], signal.SIGKILL)


@pytest.mark.chaos
@pytest.mark.ray
def test_a_disk_that_is_full_for_one_worker_ends_all(
    chaos: ModuleType, settings: Settings, tmp_path: Path, undisturbed_on_two: dict[str, Any], wait_until: WaitUntil
) -> None:
    with ThreadPoolExecutor() as pool:
        run = pool.submit(on_two, chaos, settings, tmp_path)
        wait_until(lambda: chaos.whole_checkpoints(tmp_path) or run.done())
        # What the other one writes by itself is the state of its generators: 5 kB.
        resource.prlimit(chaos.train_workers()[1], resource.RLIMIT_FSIZE, (2000, 2000))
        with pytest.raises(TrainingError, match=r"could not be written to .*make room"):
            run.result()
        assert chaos.outcome(on_two(chaos, settings, tmp_path)) == undisturbed_on_two


@pytest.mark.chaos
@pytest.mark.ray
def test_a_lost_node_that_is_not_replaced_leaves_one_worker(
    chaos: ModuleType, settings: Settings, tmp_path: Path, driver: Driver
) -> None:
    """Two nodes, one of which goes away: on the other the run ends, with the losses of one process but for dropout."""
    config, out = settings(epochs=10, workers=2, min_workers=1), tmp_path / "out"
    outcome = outcome_of(driver(["nodes"], out, config), out)
    assert len(outcome["losses"]) == 10
    worlds = [json.loads(path.read_text())["world_size"] for path in sorted(out.glob("run/checkpoint_*/progress.json"))]
    assert worlds[-1] == 1
    alone = fit_in_process(*chaos.towers_and_data(), settings(epochs=10))
    assert outcome["losses"] == pytest.approx([record.loss for record in alone.records], rel=0.02)


def assert_alike(one: TrainResult, other: TrainResult) -> None:
    assert [record.loss for record in one.records] == [record.loss for record in other.records]
    assert one.weights.keys() == other.weights.keys()
    assert all((one.weights[name] == other.weights[name]).all() for name in one.weights)
