import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from recsys_ray.core.artifacts import ArtifactStore, sha256_file
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.prepare import prepare
from recsys_ray.data.split import SplitConfig
from recsys_ray.data.synthetic import item_id, make_synthetic


def test_sizes_and_columns(tmp_path):
    config = make_synthetic(tmp_path, users=30, items=20, events_per_user=4, images=True, vectors=3)
    assert pq.read_table(config.events).num_rows == 120
    assert pq.read_table(config.users).num_rows == 30
    items = pq.read_table(config.items)
    assert items.column("item_id").to_pylist() == [item_id(row) for row in range(20)]
    assert {len(vector) for vector in items.column("audio").to_pylist() if vector} == {3}
    with Image.open(tmp_path / items.column("image")[0].as_py()) as picture:
        assert picture.size == (32, 32)


def test_the_seed_decides(tmp_path):
    hashes = [
        {path.name: sha256_file(path) for path in sorted((tmp_path / name).rglob("*")) if path.is_file()}
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
        if make_synthetic(tmp_path / name, users=10, items=10, seed=seed, images=True)
    ]
    assert hashes[0] == hashes[1]
    assert hashes[0] != hashes[2]


def test_there_is_something_to_learn(tmp_path):
    """The next item is often what followed the last one before, far more often than a popular one."""
    config = make_synthetic(tmp_path / "raw", users=300, items=100, events_per_user=10)
    store = ArtifactStore(tmp_path / "store")
    artifact = store.publish("dataset", "d", lambda directory: prepare(config, SplitConfig(), directory), {}, {})
    fold = load_dataset(artifact).folds[0]
    follows = np.zeros((100, 100))
    for user in range(300):
        history = fold.train_validation.histories[user]
        np.add.at(follows, (history[:-1], history[1:]), 1)
    last = np.array([fold.test.history[row][-1] for row in range(len(fold.test))])
    target = fold.test.items.values
    by_sequence = np.mean([np.argmax(follows[last[row]]) == target[row] for row in range(len(target))])
    by_popularity = np.mean(target == np.argmax(fold.train_validation.item_counts()))
    assert by_sequence > 0.4
    assert by_sequence > 4 * by_popularity
