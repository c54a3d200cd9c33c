from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import TrainingError
from recsys_ray.core.events import Events
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.batches import (
    BatchMaker,
    StepBatch,
    Windows,
    cut_windows,
    pad_windows,
    plan_epoch,
    steps_per_epoch,
)
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.negatives import NegativeSampler


def events_of(lengths: list[int], num_items: int = 1000) -> Events:
    """Item rows are the places of the events, so that they can be recognised."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    count = len(users)
    return Events.from_columns(
        users, np.arange(count), np.arange(count), np.ones(count, np.float32), len(lengths), num_items
    )


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8), st.integers(1, 12), st.integers(0, 99))
def test_windows_hold_every_event_once_and_are_no_longer_than_asked(
    lengths: list[int], longest: int, seed: int
) -> None:
    windows = cut_windows(events_of(lengths), longest, np.random.default_rng(seed))
    places = [place for start, end in zip(windows.starts, windows.ends, strict=True) for place in range(start, end)]
    assert sorted(places) == list(range(sum(lengths)))
    assert all(0 < length <= longest for length in windows.lengths)
    assert (windows.starts >= windows.firsts).all()


def test_a_window_in_the_middle_starts_from_the_item_before() -> None:
    windows = Windows(*(np.array(column, np.int64) for column in ([0, 0, 1], [0, 3, 5], [3, 5, 6], [0, 0, 5])))
    history, targets, places = pad_windows(events_of([5, 1]), windows)
    np.testing.assert_array_equal(history, [[-1, 0, 1], [-1, 2, 3], [-1, -1, -1]])
    np.testing.assert_array_equal(targets, [[0, 1, 2], [-1, 3, 4], [-1, -1, 5]])
    np.testing.assert_array_equal(places, [0, 1, 2, 3, 4, 5])


def test_a_plan_is_reproducible_near_equal_and_holds_each_window_once() -> None:
    windows = cut_windows(events_of([3] * 95 + [7] * 8), 10, np.random.default_rng(0))
    batches = plan_epoch(windows, 10, np.random.default_rng(4))
    again = plan_epoch(windows, 10, np.random.default_rng(4))
    assert sorted(np.concatenate(batches)) == list(range(103))
    assert all((one == other).all() for one, other in zip(batches, again, strict=True))
    assert {len(batch) for batch in batches} <= {9, 10}
    assert any(
        (one != other).any()
        for one, other in zip(batches, plan_epoch(windows, 10, np.random.default_rng(5)), strict=True)
        if len(one) == len(other)
    )


def make(data: TrainInput, rank: int, world_size: int, weights: bool = False) -> StepBatch:
    maker = BatchMaker(data, 8, TrainingConfig(batch_size=10, event_weights=weights), (rank, world_size))
    sampler = NegativeSampler(data.train.item_counts(), 15, 0.5, 0)
    nothing = PairSampler(data.inputs, TrainingConfig(), (rank, world_size))
    return maker.make(next(iter(maker.epoch(0))), sampler.draw(0), nothing.draw(0))


def rows_of(batch: StepBatch, positions: torch.Tensor) -> list[int]:
    return batch.inputs.items.values["id"]["row"][positions].tolist()


def test_only_distinct_items_are_encoded_and_positions_point_at_them(data: TrainInput) -> None:
    batch = make(data, 0, 1)
    encoded = batch.inputs.items.values["id"]["row"].tolist()
    assert len(encoded) == len(set(encoded))
    assert rows_of(batch, batch.inputs.targets[batch.inputs.targets >= 0]) == batch.target_rows.tolist()
    assert rows_of(batch, batch.inputs.negatives) == batch.negative_rows.tolist()
    # What is read at a position is the target of the position before.
    after = batch.inputs.history[:, 1:]
    assert (after[after >= 0] == batch.inputs.targets[:, :-1][after >= 0]).all()
    assert batch.num_positions == len(batch.target_rows)


def test_ranks_share_one_global_batch(data: TrainInput) -> None:
    whole, parts = make(data, 0, 1), [make(data, rank, 3) for rank in range(3)]
    assert sorted(row for part in parts for row in part.target_rows.tolist()) == sorted(whole.target_rows.tolist())
    assert [row for part in parts for row in rows_of(part, part.inputs.negatives)] == whole.negative_rows.tolist()
    assert {part.num_positions for part in parts} == {whole.num_positions}
    assert {part.num_sequences for part in parts} == {whole.num_sequences}


def test_event_weights_follow_their_targets(small: ModuleType) -> None:
    plain = small.small_data()
    train = plain.train
    weighted = Events(train.offsets, train.items, train.timestamps, train.items.astype(np.float32), train.num_items)
    batch = make(TrainInput(plain.inputs, weighted), 0, 1, weights=True)
    assert batch.weights is not None
    assert batch.weights.tolist() == batch.target_rows.tolist()


def test_more_workers_than_sequences_is_an_error(data: TrainInput) -> None:
    with pytest.raises(TrainingError, match="fewer sequences than the 64 workers"):
        BatchMaker(data, 8, TrainingConfig(batch_size=100), (0, 64)).epoch(0)


def test_steps_are_foreseen(data: TrainInput) -> None:
    maker = BatchMaker(data, 4, TrainingConfig(batch_size=10), (0, 1))
    actual = np.mean([len(maker.epoch(epoch)) for epoch in range(20)])
    assert steps_per_epoch(data.train, 4, 10) == pytest.approx(actual, rel=0.15)
