"""Exposed negatives: which exposures stand at which event, what they do to the loss, and that nobody else notices."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.training import loss as loss_module
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.batches import BatchMaker
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput, Validation
from recsys_ray.training.exposed import ExposedNegatives, shown_at
from recsys_ray.training.fit import fit_in_process
from recsys_ray.training.loss import Negatives, sampled_softmax
from recsys_ray.training.negatives import Draw, NegativeSampler
from recsys_ray.training.progress import TrainResult

Cut = Callable[[TwoTower, TrainInput, TrainingConfig, Path], TrainResult]
Settings = Callable[..., TrainingConfig]
USERS, ITEMS = 4, 6
ROWS = st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, 9)), max_size=30)


def events_of(rows: list[tuple[int, int, int]]) -> Events:
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Events.from_columns(*columns, np.ones(len(rows), np.float32), USERS, ITEMS)


def slowly(train: Events, exposures: Events) -> list[set[int]]:
    """For each event, what its user was shown since the event before, by the words of the documentation."""
    found = []
    for place, (user, time) in enumerate(zip(train.users, train.timestamps, strict=True)):
        start = train.offsets[user]
        since = train.timestamps[place - 1] if place > start else -1
        own = set(train.items[start : train.offsets[user + 1]].tolist())
        found.append(
            {
                int(item)
                for who, item, when in zip(exposures.users, exposures.items, exposures.timestamps, strict=True)
                if who == user and since < when <= time and item not in own and item in train.items
            }
        )
    return found


@settings(deadline=None, max_examples=60)
@given(chosen=ROWS, shown=ROWS)
def test_exposures_stand_at_the_next_event_of_their_user(
    chosen: list[tuple[int, int, int]], shown: list[tuple[int, int, int]]
) -> None:
    train, exposures = events_of(chosen), events_of(shown)
    found = shown_at(train, exposures)
    assert len(found) == len(train)
    assert [found[place].tolist() for place in range(len(train))] == [sorted(one) for one in slowly(train, exposures)]


def test_what_comes_after_the_training_events_is_not_read() -> None:
    train = events_of([(0, 0, 1), (0, 1, 5), (1, 2, 2), (1, 3, 3)])
    early = events_of([(0, 2, 0), (0, 3, 5), (1, 0, 3)])
    late = events_of([(0, 2, 0), (0, 3, 5), (0, 2, 6), (1, 0, 3), (1, 1, 4), (1, 1, 9)])
    assert [row.tolist() for row in (shown_at(train, late)[place] for place in range(4))] == [[2], [3], [], [0]]
    np.testing.assert_array_equal(shown_at(train, early).values, shown_at(train, late).values)


@pytest.fixture(scope="module")
def exposed(data: TrainInput, small: ModuleType) -> TrainInput:
    return replace(data, shown=shown_at(data.train, small.small_exposures()))


def joined(data: TrainInput, config: TrainingConfig, step: int = 0) -> tuple[BatchMaker, Draw, Draw]:
    maker = BatchMaker(data, 8, config, (0, 1))
    draw = NegativeSampler(data.train.item_counts(), 15, 0.5, 0).draw(step)
    windows = next(iter(maker.epoch(0)))
    return maker, draw, ExposedNegatives(data.shown, config).add(draw, windows, step)


def test_a_window_brings_so_many_of_its_own_at_most(exposed: TrainInput, settings: Settings) -> None:
    config = settings(exposed_negatives=25)
    maker, draw, both = joined(exposed, config)
    windows, shown = next(iter(maker.epoch(0))), exposed.shown
    assert shown is not None
    pairs = list(zip(both.own[0].tolist(), both.rows[both.own[1]].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    for start, end in zip(windows.starts, windows.ends, strict=True):
        there = {(place, row) for place in range(start, end) for row in shown[place].tolist()}
        mine = [pair for pair in pairs if start <= pair[0] < end]
        assert set(mine) <= there
        assert len(mine) == min(2, len(there))
    np.testing.assert_array_equal(both.rows[:15], draw.rows)
    assert len(set(both.rows[15:])) == len(both.rows[15:])
    assert np.isinf(both.log_expected[15:]).all()
    assert (both.own[1] >= 15).all()
    np.testing.assert_array_equal(joined(exposed, config)[2].own, both.own)  # drawn again alike
    assert joined(exposed, config, step=1)[2].own.tolist() != both.own.tolist()


def test_each_rank_s_positions_have_what_they_have_on_one(exposed: TrainInput, settings: Settings) -> None:
    config = settings(exposed_negatives=30)
    _, _, draw = joined(exposed, config)

    def own(rank: int, world_size: int) -> set[tuple[int, int, int]]:
        maker = BatchMaker(exposed, 8, config, (rank, world_size))
        nothing = PairSampler(exposed.inputs, config, (rank, world_size))
        batch = maker.make(next(iter(maker.epoch(0))), draw, nothing.draw(0))
        users = torch.arange(len(batch.inputs.history))[:, None].expand_as(batch.inputs.targets)[
            batch.inputs.targets >= 0
        ]
        # A window, told by its rank and row, and the target and the negative of each pair.
        return {
            (int(users[p]) * world_size + rank, int(batch.target_rows[p]), int(batch.negative_rows[n]))
            for p, n in batch.own.T.tolist()
        }

    assert len(own(0, 1)) > 10
    assert own(0, 1) == own(0, 2) | own(1, 2)
    assert own(0, 1) == own(0, 3) | own(1, 3) | own(2, 3)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator), dim=-1)


OWN = torch.tensor([[3, 0, 3, 1], [5, 5, 6, 6]])
NEGATIVE_ROWS = torch.tensor([7, 2, 9, 7, 0, 7, 9])  # the last two are there for some positions alone
LOG_EXPECTED = torch.tensor([0.4, -1.0, 0.2, 0.4, 0.1, torch.inf, torch.inf])
TARGET_ROWS = torch.tensor([0, 1, 2, 7, 4])[[0, 1, 2, 4, 4]]


def formula(queries: Tensor, targets: Tensor, negatives: Tensor, weight: float) -> Tensor:
    """Position by position."""
    own = [tuple(pair) for pair in OWN.T.tolist()]
    total = torch.zeros((), dtype=queries.dtype)
    for p in range(len(queries)):
        mine = {int(NEGATIVE_ROWS[n]): n for position, n in own if position == p}
        parts = [torch.exp(torch.dot(queries[p], targets[p]) / 0.3)]
        for n, row in enumerate(NEGATIVE_ROWS.tolist()):
            if row != int(TARGET_ROWS[p]) and row not in mine and n < 5:
                parts.append(torch.exp(torch.dot(queries[p], negatives[n]) / 0.3) / LOG_EXPECTED[n].double().exp())
        parts += [weight * torch.exp(torch.dot(queries[p], negatives[n]) / 0.3) for n in mine.values()]
        total = total + torch.log(torch.stack(parts).sum()) - torch.log(parts[0])
    return total


@pytest.mark.parametrize("weight", [1.0, 4.0])
@pytest.mark.parametrize("chunk", [1, 2, 32])
def test_the_loss_is_that_of_the_formula(monkeypatch: pytest.MonkeyPatch, chunk: int, weight: float) -> None:
    # Sizes, not behaviour: chunks as a large catalogue brings them, that cut between the positions with their own.
    monkeypatch.setattr(loss_module, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(loss_module, "MIN_POSITIONS", chunk)
    inputs = [unit(size, 4, seed=seed).double().requires_grad_() for seed, size in enumerate((5, 5, 7))]
    slow = formula(*inputs, weight)
    expected = torch.autograd.grad(slow, inputs)
    shared = Negatives(inputs[2], NEGATIVE_ROWS, LOG_EXPECTED, OWN, weight)
    ours = sampled_softmax(inputs[0], inputs[1], TARGET_ROWS, shared, (0.3, None))
    assert ours.item() == pytest.approx(slow.item(), rel=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, inputs), expected, atol=1e-6, rtol=1e-5)


def test_nobody_else_notices_what_was_shown_to_one() -> None:
    queries, targets, vectors = unit(5, 4), unit(5, 4, seed=1), unit(7, 4, seed=2)
    drawn = Negatives(vectors[:5], NEGATIVE_ROWS[:5], LOG_EXPECTED[:5])
    both = Negatives(vectors, NEGATIVE_ROWS, LOG_EXPECTED, OWN, 10.0)

    def at(position: int, negatives: Negatives) -> float:
        return float(sampled_softmax(queries, targets, TARGET_ROWS, negatives, (0.3, torch.eye(5)[position])))

    assert [at(position, both) == at(position, drawn) for position in range(5)] == [False, False, True, False, True]


def test_with_weight_one_the_full_softmax_is_estimated_without_bias() -> None:
    items, query, own, draws = unit(50, 6), unit(1, 6, seed=1), np.array([4, 9, 30]), 20_000
    probabilities = np.random.default_rng(0).dirichlet(np.ones(50)) / 2 + 0.01
    drawn = np.random.default_rng(1).choice(50, draws, p=probabilities)
    log_expected = np.log(draws * probabilities)[drawn].astype(np.float32)
    rows = torch.from_numpy(np.concatenate([drawn, own]))
    corrections = torch.from_numpy(np.concatenate([log_expected, np.full(3, np.inf, np.float32)]))
    pairs = torch.stack([torch.zeros(3, dtype=torch.int64), torch.arange(draws, draws + 3)])
    ours = sampled_softmax(
        query, items[[3]], torch.tensor([3]), Negatives(items[rows], rows, corrections, pairs), (0.5, None)
    )
    assert ours.item() == pytest.approx(F.cross_entropy(query @ items.T / 0.5, torch.tensor([3])).item(), abs=0.03)


def test_a_run_that_was_cut_goes_on_alike(
    towers: TwoTower, exposed: TrainInput, settings: Settings, tmp_path: Path, cut_within_an_epoch: Cut
) -> None:
    config = settings(exposed_negatives=20, hard_negatives=10, checkpoint_steps=2, epochs=2)
    undisturbed = fit_in_process(copy.deepcopy(towers), exposed, config)
    without = fit_in_process(copy.deepcopy(towers), exposed, settings(hard_negatives=10, epochs=2))
    assert undisturbed.records[0].loss > without.records[0].loss
    resumed = cut_within_an_epoch(towers, exposed, config, tmp_path)
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())


def test_settings_without_effect_are_refused(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="at least batch_size = 10"):
        settings(exposed_negatives=9)
    with pytest.raises(ConfigError, match='exposed_weight other than 1 when negatives is "all"'):
        settings(negatives="all", exposed_negatives=10, exposed_weight=1.0)
    for nothing in (None, Ragged.empty(len(data.train))):
        with pytest.raises(ConfigError, match=r"exposed_negatives: got 10; allowed: 0 here\. No event of"):
            fit_in_process(towers, replace(data, shown=nothing), settings(exposed_negatives=10))
    with pytest.raises(ConfigError, match=r"exposed_weight: got 1\.0"):
        fit_in_process(towers, data, settings(negatives=1000, exposed_negatives=10, exposed_weight=1.0))


@pytest.mark.slow
def test_exposures_teach_what_few_choices_do_not(settings: Settings) -> None:
    """Users of three tastes are shown pages of items, choose three of their taste, and are asked for the fourth."""
    train, shown, queries = tastes(users=300, items=120)
    inputs = ItemInputs({"id": {"row": torch.arange(120)}}, {"id": torch.ones(120, dtype=torch.bool)})
    data = TrainInput(inputs, train, queries, None, shown_at(train, shown))
    user = {"blocks": 1, "heads": 2, "history": 8}
    parts = {"text": None, "image": None, "vectors": None, "attributes": None}
    towers = TwoTowerConfig.parse({"dim": 16, "user": user, **parts})

    def recall(**changes: float) -> float:
        torch.manual_seed(0)
        config = settings(batch_size=50, negatives=100, epochs=12, learning_rate=0.02, **changes)
        return fit_in_process(build(towers, Fields(), 120, {}), data, config).validation["recall@10"]

    assert recall(exposed_negatives=1000, exposed_weight=100.0) > recall() + 0.03


def tastes(users: int, items: int) -> tuple[Events, Events, Validation]:
    """What was chosen but the last, what was shown (of another taste: the own would have been chosen), and the last."""
    rng = np.random.default_rng(0)
    taste, own = rng.integers(0, 3, items), rng.integers(0, 3, users)
    chosen, shown = [], []
    for user in range(users):
        for time in range(4):
            chosen.append((user, rng.choice(np.flatnonzero(taste == own[user])), 2 * time + 1))
            page = rng.choice(items, 20, replace=False)
            shown += [(user, item, 2 * time) for item in page[taste[page] != own[user]]]
    events, exposures = (
        Events.from_columns(*np.array(rows).T, np.ones(len(rows), np.float32), users, items) for rows in (chosen, shown)
    )
    last = np.isin(np.arange(len(events)), events.offsets[1:] - 1)
    train, histories = events.where(~last), events.where(~last).histories
    return train, exposures, Validation(np.arange(users), histories, histories, events.where(last).histories)
