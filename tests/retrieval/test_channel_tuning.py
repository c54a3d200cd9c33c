"""The search over a channel's settings, against the whole grid ranked by hand."""

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channel_tuning import ChannelTuningConfig, tune_channel
from recsys_ray.retrieval.channels import CoVisitationConfig, NearestConfig, fit_channel
from recsys_ray.retrieval.channels.fit_data import FitData, Space, ValidationPairs
from recsys_ray.retrieval.channels.shards import CountShard, in_this_process

NUM_USERS, NUM_ITEMS = 120, 40
SEARCH = {"decay": (0.3, 0.6, 0.9), "transpose": (0.0, 0.5, 1.0), "target_exponent": (0.0, 0.5, 1.0)}
CONFIG = CoVisitationConfig(window=3, decay=0.9, transpose=1.0, target_exponent=0.0, search=SEARCH)


def make_data(targets_each: int = 1) -> FitData:
    """Walks that mostly step forward by one or two items, with popular detours."""
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 3, (NUM_USERS, 9)).cumsum(1)
    walks = (rng.integers(0, NUM_ITEMS, (NUM_USERS, 1)) + steps) % NUM_ITEMS
    walks = np.where(rng.random(walks.shape) < 0.3, rng.integers(0, 5, walks.shape), walks)
    known = 9 - targets_each
    users, items = np.repeat(np.arange(NUM_USERS), known), walks[:, :known].ravel()
    events = Events.from_columns(users, items, np.arange(len(items)), np.ones(len(items)), NUM_USERS, NUM_ITEMS)
    history, targets = Ragged.of(list(walks[:, :known])), Ragged.of(list(walks[:, known:]))
    return FitData(
        events, pa.table({}), Fields(), validation=ValidationPairs(history, Ragged.empty(NUM_USERS), targets)
    )


def objective_by_hand(config: CoVisitationConfig, data: FitData) -> float:
    """Query by query, rank by counting: half the ties are above."""
    pairs = data.validation
    assert pairs is not None
    scores = fit_channel("c", config, data).scores(pairs.queries())
    found, gains, deep = [], [], []
    for query in range(len(pairs.items)):
        own = scores[query, pairs.items[query]]
        above = [(scores[query] > one).sum() + ((scores[query] == one).sum() - 1) / 2 for one in own]
        ranks = np.where(np.isneginf(own), np.inf, above)
        ideal = sum(1 / np.log2(place + 2) for place in range(min(len(own), 10)))
        found.append((ranks < 10).mean())
        gains.append(sum(1 / np.log2(rank + 2) for rank in ranks if rank < 10) / ideal)
        deep.append((ranks < 100).mean())
    return float(np.cbrt(np.mean(found) * np.mean(gains) * np.mean(deep)))


def grid() -> Iterator[CoVisitationConfig]:
    for values in itertools.product(*SEARCH.values()):
        yield override(CONFIG, dict(zip(SEARCH, values, strict=True)))


@pytest.mark.parametrize("targets_each", [1, 3])
def test_the_best_of_the_grid_is_found(targets_each: int) -> None:
    data = make_data(targets_each)
    channel, facts = tune_channel("c", CONFIG, data, ChannelTuningConfig(), lambda _: None)
    tuning = facts["tuning"]
    best = max(objective_by_hand(config, data) for config in grid())
    assert tuning["best"]["objective"] == pytest.approx(best)
    assert tuning["start"]["objective"] == pytest.approx(objective_by_hand(CONFIG, data))
    assert tuning["best"]["objective"] > tuning["start"]["objective"]
    assert tuning["trials"] < len(list(grid()))
    chosen = override(CONFIG, {**tuning["best"]["settings"], "search": {}})
    assert channel.config == chosen
    queries = data.validation.queries()
    np.testing.assert_array_equal(channel.scores(queries), fit_channel("c", chosen, data).scores(queries))


def test_every_value_stands_in_the_facts_with_its_objective() -> None:
    data = make_data()
    _, facts = tune_channel("c", CONFIG, data, ChannelTuningConfig(), lambda _: None)
    tuning = facts["tuning"]
    for setting, values in SEARCH.items():
        tried = {one["value"]: one["objective"] for one in tuning["tried"][setting]}
        assert set(tried) == set(values)
        assert max(tried, key=tried.__getitem__) == tuning["best"]["settings"][setting]
        assert max(tried.values()) == tuning["best"]["objective"]


def test_only_settings_that_fitting_reads_fit_anew() -> None:
    fits = []

    def noticed(count: CountShard, events: Events) -> Iterator[sp.csr_matrix]:
        fits.append(count)
        return in_this_process(count, events)

    data = replace(make_data(), map_shards=noticed)
    config = override(CONFIG, {"search": {"decay": (0.2, 0.4, 0.6, 0.8), "history": (1, 3, 10)}})
    _, facts = tune_channel("c", config, data, ChannelTuningConfig(), lambda _: None)
    assert facts["tuning"]["trials"] > 6
    assert len(fits) == 1
    tune_channel("c", override(CONFIG, {"search": {"window": (1, 2, 4, 5)}}), data, ChannelTuningConfig(rounds=1))
    assert len(fits) == 1 + 5


def test_the_same_sample_gives_the_same_choice() -> None:
    data, settings = make_data(), ChannelTuningConfig(max_queries=50, seed=3)
    first, again = (tune_channel("c", CONFIG, data, settings, lambda _: None)[1]["tuning"] for _ in range(2))
    assert first["queries"] == 50
    assert {**first, "seconds": 0} == {**again, "seconds": 0}
    other = tune_channel("c", CONFIG, data, ChannelTuningConfig(max_queries=50, seed=4), lambda _: None)[1]["tuning"]
    assert other["start"] != first["start"]


def test_a_budget_of_trials_is_kept_and_said() -> None:
    said: list[str] = []
    channel, facts = tune_channel("c", CONFIG, make_data(), ChannelTuningConfig(trials=3), said.append)
    assert facts["tuning"]["trials"] == 3
    assert facts["tuning"]["stopped"] == "after channel_tuning.trials=3"
    assert said[-1] == "channel c: its search stopped after channel_tuning.trials=3"
    assert channel.config.search == {}


def test_the_guard_of_time_stops_the_search_aloud() -> None:
    said: list[str] = []
    channel, facts = tune_channel("c", CONFIG, make_data(), ChannelTuningConfig(seconds=1e-9), said.append)
    assert facts["tuning"]["trials"] == 1
    assert "channel_tuning.seconds=1e-09: a faster machine tries more" in said[-1]
    assert channel.config == override(CONFIG, {"search": {}})


@pytest.mark.parametrize("validation", [None, ValidationPairs(Ragged.empty(0), Ragged.empty(0), Ragged.empty(0))])
def test_without_validation_the_settings_stand(validation: ValidationPairs | None) -> None:
    data = replace(make_data(), validation=validation)
    channel, facts = tune_channel("c", CONFIG, data, ChannelTuningConfig())
    assert channel.config == override(CONFIG, {"search": {}})
    assert facts == {}


def test_a_channel_that_reads_vectors_alone_cannot_be_searched() -> None:
    vectors = np.eye(NUM_ITEMS, dtype=np.float32)
    data = replace(make_data(), spaces={"towers": Space("s", vectors, vectors)})
    with pytest.raises(ConfigError, match=r"channels\.n\.search: .*allowed: \{\}"):
        tune_channel("n", NearestConfig(search={"space": ("towers",)}), data, ChannelTuningConfig())
