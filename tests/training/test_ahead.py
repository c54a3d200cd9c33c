"""Batches made ahead: the same ones in the same order, no more than asked for, and errors in their place."""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.ahead import ahead
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import fit_in_process, run_rank
from recsys_ray.training.loop import Hooks
from recsys_ray.training.progress import EpochRecord

Settings = Callable[..., TrainingConfig]


def threads() -> int:
    return sum(thread.name.startswith("batches ahead") for thread in threading.enumerate())


@settings(deadline=None, max_examples=50)
@given(numbers=st.lists(st.integers(), max_size=12), count=st.integers(0, 4), bad=st.integers(0, 20))
def test_results_are_those_of_a_plain_loop_up_to_the_error(numbers: list[int], count: int, bad: int) -> None:
    def make(numbered: tuple[int, int]) -> int:
        if numbered[0] == bad:
            raise ValueError(f"number {bad}")
        return 2 * numbered[1]

    found: list[int] = []
    fails = pytest.raises(ValueError, match=f"number {bad}") if bad < len(numbers) else nullcontext()
    with fails:
        for result in ahead(make, enumerate(numbers), count):
            found.append(result)
    assert found == [2 * number for number in numbers[:bad]]
    assert threads() == 0


def test_no_more_is_begun_than_asked_for_and_closing_ends_the_thread() -> None:
    begun: list[int] = []
    results = ahead(lambda number: begun.append(number) or number, iter(range(100)), 3)
    assert next(results) == 0
    assert next(results) == 1
    assert threads() == 1
    results.close()
    assert threads() == 0
    assert set(begun) <= {0, 1, 2, 3, 4}


def test_work_goes_on_while_the_caller_is_busy() -> None:
    third = threading.Event()

    def make(number: int) -> int:
        if number == 2:
            third.set()
        return number

    results: Iterator[int] = ahead(make, iter(range(9)), 2)
    assert next(results) == 0
    assert third.wait(30)  # made though nobody asked for the second one
    assert list(results) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("batches_ahead", [1, 3, 50])
def test_a_run_is_the_same_to_the_bit_whatever_is_made_ahead(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path, batches_ahead: int
) -> None:
    changes = {"hard_negatives": 10, "checkpoint_steps": 2, "epochs": 3}
    plain = fit_in_process(copy.deepcopy(towers), data, settings(**changes, batches_ahead=0))
    config = settings(**changes, batches_ahead=batches_ahead)
    kept: list[Path] = []

    def keep(_: EpochRecord | None, write: Callable[[Path], None]) -> None:
        kept.append(tmp_path / str(len(kept)))
        kept[-1].mkdir()
        write(kept[-1])

    whole = run_rank(copy.deepcopy(towers), data, config, (0, 1), Hooks(keep=keep))
    resumed = run_rank(copy.deepcopy(towers), data, config, (0, 1), Hooks(resume=kept[-2]))  # within an epoch
    for other in (whole, resumed):
        assert [record.loss for record in other.records] == [record.loss for record in plain.records]
        assert all(torch.equal(tensor, other.weights[name]) for name, tensor in plain.weights.items())
    assert threads() == 0


def test_a_run_that_fails_leaves_no_thread(
    towers: TwoTower, data: TrainInput, settings: Settings, small: ModuleType
) -> None:
    def full(_: EpochRecord | None, __: Callable[[Path], None]) -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        run_rank(towers, data, settings(batches_ahead=2, checkpoint_steps=1), (0, 1), Hooks(keep=full))
    assert threads() == 0


def test_what_auto_comes_to(settings: Settings) -> None:
    assert (settings().waiting, settings(gpus=1).waiting, settings(batches_ahead=5).waiting) == (0, 2, 5)
    with pytest.raises(ConfigError, match="batches_ahead"):
        settings(batches_ahead=-1)
