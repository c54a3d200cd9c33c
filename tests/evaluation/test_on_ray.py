from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.on_ray import replay_on_ray
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.replay import FUSED, replay, without
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.retrieval.channels import CoVisitationConfig, PopularityConfig, fit_channel, load_channel
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.retriever import Retriever

NUM_USERS, NUM_ITEMS = 60, 40


def make_fold(seed: int) -> Fold:
    """Leave-one-out over random walks along neighbouring items."""
    rng = np.random.default_rng(seed)
    walks: IntArray = (
        rng.integers(0, NUM_ITEMS, (NUM_USERS, 1)) + rng.integers(0, 3, (NUM_USERS, 9)).cumsum(1)
    ) % NUM_ITEMS

    def events(length: int) -> Events:
        items = walks[:, :length].ravel()
        users = np.repeat(np.arange(NUM_USERS), length)
        return Events.from_columns(users, items, np.arange(len(items)), np.ones(len(items)), NUM_USERS, NUM_ITEMS)

    def targets(length: int) -> Targets:
        history = Ragged.of(list(walks[:, :length]))
        items = Ragged.of(list(walks[:, length : length + 1]))
        return Targets(np.arange(NUM_USERS), history, history, items, np.zeros(NUM_USERS, bool))

    return Fold(events(7), events(8), targets(7), targets(8))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_shards_on_ray_equal_one_process(tmp_path):
    folds = [make_fold(0), make_fold(1)]
    configs = {"co_visitation": CoVisitationConfig(), "popularity": PopularityConfig()}
    paths = [tmp_path / str(index) for index in range(2)]
    for fold, path in zip(folds, paths, strict=True):
        for name, config in configs.items():
            (path / name).mkdir(parents=True)
            fit_channel(name, config, FitData(fold.train, pa.table({}), Fields())).save(path / name)
    config = EvaluationConfig(bootstrap_samples=100)

    def load(path: Path) -> Retriever:  # defined here, so that it travels whole: workers cannot import a test module
        channels = {folder.name: load_channel(folder) for folder in sorted(path.iterdir())}
        return Retriever(channels, (), Fusion.equal(list(channels), depth=30))

    for fold, path in zip(folds, paths, strict=True):
        others = {"popularity": Fusion(weights={"co_visitation": 1.0})}
        asked = Questions("test", fold.test, fold.train.item_counts(), without=others)
        on_ray, here = replay_on_ray(load, path, asked, config, shards=3), replay(load(path), asked, config)
        assert on_ray.ranks.keys() == here.ranks.keys() == {"co_visitation", "popularity", FUSED, without("popularity")}
        for name, ranks in here.ranks.items():
            np.testing.assert_array_equal(on_ray.ranks[name], ranks)
            np.testing.assert_array_equal(on_ray.shown[name], here.shown[name])
        assert np.mean(here.ranks["co_visitation"] < 10) > np.mean(here.ranks["popularity"] < 10)
