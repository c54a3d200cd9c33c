"""Counts of published data sets, whose numbers are only comparable when these hold."""

import time

import numpy as np
import pytest

from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.prepare import prepare
from recsys_ray.data.sources import DataConfig
from recsys_ray.data.split import SplitConfig

pytestmark = [pytest.mark.shared_data, pytest.mark.slow]


def make(folder, data, split=None):
    store = ArtifactStore(folder)
    return store.publish("dataset", "d", lambda directory: prepare(data, split or SplitConfig(), directory), {}, {})


@pytest.mark.parametrize(
    ("name", "counts", "repeated", "missed"),
    [("amazon_beauty", (22_363, 12_101, 198_502), 0, 0), ("yelp", (30_431, 20_033, 316_354), 11_830, 2_027)],
)
def test_published_leave_one_out_sets(tmp_path, shared_data, name, counts, repeated, missed):
    folder = shared_data / name
    artifact = make(
        tmp_path, DataConfig(items=str(folder / "items.parquet"), events=str(folder / "interactions.parquet"))
    )
    assert tuple(artifact.summary[key] for key in ("users", "items", "events")) == counts
    dataset = load_dataset(artifact)
    assert len(dataset.events) - dataset.events.matrix().nnz == repeated
    test = dataset.folds[0].test
    assert len(test) == counts[0]
    in_history = test.exclude.values == np.repeat(test.items.values, test.exclude.lengths)
    assert np.unique(test.exclude.row_of_value[in_history]).size == missed


def test_movielens_1m_is_prepared_and_loaded_in_seconds(tmp_path, shared_data):
    folder = shared_data / "ml1m"
    data = DataConfig(
        items=str(folder / "items.parquet"),
        events=str(folder / "interactions.parquet"),
        users=str(folder / "users.parquet"),
    )
    started = time.perf_counter()
    artifact = make(tmp_path, data)
    prepared = time.perf_counter()
    dataset = load_dataset(artifact)
    loaded = time.perf_counter()
    assert (len(dataset.user_ids), len(dataset.item_ids), len(dataset.events)) == (6_040, 3_416, 999_611)
    assert artifact.summary["missing"]["image"] == 15
    assert artifact.summary["warnings"] == []
    # Generous: on an idle core it is about 3 s and 0.1 s.
    assert prepared - started < 60
    assert loaded - prepared < 10


def test_movielens_100k_files_as_users_have_them(tmp_path, shared_data):
    folder = str(shared_data / "ml100k")
    data = DataConfig(items=folder, events=folder, users=folder, images=f"{folder}/posters")
    artifact = make(tmp_path, data, SplitConfig(protocol="global_time"))
    dataset = load_dataset(artifact)
    assert (len(dataset.user_ids), len(dataset.item_ids), len(dataset.events)) == (943, 1_682, 100_000)
    assert artifact.summary["missing"]["image"] == 1_682 - 1_663
    assert len(dataset.folds) == 5
    for fold in dataset.folds:
        assert fold.train.timestamps.max() < fold.train_validation.timestamps.max()


def test_gowalla_comes_as_three_files_without_time(tmp_path, shared_data):
    folder = shared_data / "gowalla"
    split = SplitConfig(
        protocol="given",
        validation_events=str(folder / "valid.parquet"),
        test_events=str(folder / "test.parquet"),
    )
    artifact = make(tmp_path, DataConfig(events=str(folder / "train.parquet")), split)
    [fold] = load_dataset(artifact).folds
    assert tuple(artifact.summary[key] for key in ("users", "items", "events")) == (29_858, 40_981, 1_027_370)
    assert (len(fold.train), len(fold.validation.items.values), len(fold.test.items.values)) == (
        719_081,
        91_047,
        217_242,
    )
