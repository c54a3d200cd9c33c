"""Hard negatives: which items are mined, what they do to the estimate of the loss, and that a run keeps them."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import fit_in_process, run_rank
from recsys_ray.training.hard import add_mined, mine, with_certain
from recsys_ray.training.loop import Hooks
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.progress import EpochRecord
from recsys_ray.training.validation import item_vectors

CPU = torch.device("cpu")
Settings = Callable[..., TrainingConfig]


def test_the_partition_function_is_estimated_without_bias_and_with_less_variance() -> None:
    scores = np.random.default_rng(0).normal(0, 2, 200)
    sampler = NegativeSampler(np.arange(1, 201), 20, 0.5, seed=0)
    certain = np.argsort(scores)[-5:]
    plain, hard = np.array(
        [
            [np.exp(scores[draw.rows] - draw.log_expected).sum() for draw in (one, with_certain(one, certain))]
            for one in (sampler.draw(step) for step in range(4000))
        ]
    ).T
    truth = np.exp(scores).sum()
    assert hard.mean() == pytest.approx(truth, rel=0.02)
    assert hard.std() < 0.75 * plain.std()


def test_certain_items_come_once_and_are_not_drawn_beside() -> None:
    draw = NegativeSampler(np.ones(30, np.int64), 25, 0.5, seed=0).draw(0)
    mined = torch.tensor([[3, 4], [4, -1], [9, 9]], dtype=torch.int32)
    both = add_mined(draw, mined, np.array([0, 1, 0]))
    assert sorted(both.rows[both.log_expected == 0]) == [3, 4]
    assert len(both.rows) == 2 + int(((draw.rows != 3) & (draw.rows != 4)).sum())
    assert add_mined(draw, torch.zeros((0, 0), dtype=torch.int32), np.array([0])) is draw


def test_mined_are_the_first_of_the_ranking_that_are_no_errors(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    config, model = settings(hard_negatives=30, batch_size=10, hard_margin=0.5), towers.eval()
    items = item_vectors(model, data, CPU, (0, 1))
    mined = mine(model, items, data, config, (0, 1))
    histories, counts = data.train.histories, data.train.item_counts()
    for user in range(len(histories)):
        own = histories[user]
        latest = torch.from_numpy(own[-model.config.user.history :].copy())
        with torch.no_grad():
            query = model.user_tower(items[latest][None], torch.ones(1, len(latest), dtype=torch.bool), None)[0, -1]
        near = (items @ items[latest].T).amax(1).numpy()
        ranked = np.argsort(-(items @ query).numpy())
        ranked = [row for row in ranked if row not in set(own) and counts[row]][: 4 * 3]
        expected = [row for row in ranked if near[row] <= 0.5][:3]
        assert [row for row in mined[user].tolist() if row >= 0] == expected
    assert (mined[:, 0] >= 0).any()


def test_a_run_goes_on_with_what_was_mined(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    config = settings(hard_negatives=20, negatives=10, checkpoint_steps=2)
    undisturbed = fit_in_process(copy.deepcopy(towers), data, config)
    without = fit_in_process(copy.deepcopy(towers), data, settings(negatives=10))
    assert undisturbed.records[0].loss == without.records[0].loss  # nothing is mined before the first epoch is done
    assert undisturbed.records[1].loss != without.records[1].loss
    kept: list[Path] = []

    def keep(record: EpochRecord | None, write: Callable[[Path], None]) -> None:
        path = tmp_path / str(len(kept))
        path.mkdir()
        write(path)
        kept.append(path)

    run_rank(copy.deepcopy(towers), data, config, (0, 1), Hooks(keep=keep, stop_after=2))
    assert load_file(kept[-2] / "mined.safetensors")["rows"].shape == (30, 2)
    resumed = run_rank(copy.deepcopy(towers), data, config, (0, 1), Hooks(resume=kept[-2]))  # within the second epoch
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())


def test_a_fit_without_validation_mines_too(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    config = settings(hard_negatives=20, negatives=10)
    one = fit_in_process(copy.deepcopy(towers), data, config, stop_after=3)
    other = fit_in_process(copy.deepcopy(towers), replace(data, validation=None), config, stop_after=3)
    assert [record.loss for record in one.records] == [record.loss for record in other.records]


def test_where_all_items_are_negatives_none_is_mined(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    with pytest.raises(ConfigError, match='hard_negatives 0 when negatives is "all"'):
        settings(negatives="all", hard_negatives=20)
    with pytest.raises(ConfigError, match="at least batch_size = 10"):
        settings(hard_negatives=9)
    with pytest.raises(ConfigError, match="hard_negatives: got 20; allowed: 0: all 40 items"):
        fit_in_process(towers, data, settings(negatives=1000, hard_negatives=20))
