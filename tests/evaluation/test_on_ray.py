from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.on_ray import evaluate_on_ray
from recsys_ray.evaluation.replay import EvaluationConfig
from recsys_ray.evaluation.summary import evaluate
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
    config = EvaluationConfig(bootstrap_samples=100, shards=3)

    def load(path: Path) -> Retriever:  # defined here, so that it travels whole: workers cannot import a test module
        channels = {folder.name: load_channel(folder) for folder in sorted(path.iterdir())}
        return Retriever(channels, (), Fusion.equal(list(channels), depth=30))

    on_ray = evaluate_on_ray(load, paths, folds, config)
    assert on_ray == evaluate([load(path) for path in paths], folds, config)
    assert on_ray.metrics["co_visitation"].values["recall@10"] > on_ray.metrics["popularity"].values["recall@10"]
