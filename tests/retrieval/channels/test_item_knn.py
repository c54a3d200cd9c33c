import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import item_knn
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_knn import ItemKnnConfig
from recsys_ray.retrieval.query import Queries

NUM_USERS, NUM_ITEMS = 70, 30


@pytest.fixture(scope="module")
def data() -> FitData:
    rng = np.random.default_rng(5)
    users = rng.integers(0, NUM_USERS, 600)
    items = (rng.zipf(1.4, 600) - 1) % (NUM_ITEMS - 1)  # the last item has no event
    events = Events.from_columns(users, items, np.arange(600), np.ones(600), NUM_USERS, NUM_ITEMS)
    return FitData(events, pa.table({}), Fields())


@pytest.mark.parametrize(
    "config",
    [
        ItemKnnConfig(shrink=0, user_exponent=0),
        ItemKnnConfig(shrink=7, user_exponent=1.5, source_exponent=0.3, target_exponent=0.6, decay=0.9),
    ],
)
def test_scores_follow_the_formula(data: FitData, config: ItemKnnConfig) -> None:
    met = data.events.matrix().toarray().astype(float)
    shared = met.T @ (met / np.log2(2 + met.sum(1, keepdims=True)) ** config.user_exponent)
    own = np.maximum(np.diag(shared), 1e-12)
    table = shared / (own[:, None] ** config.source_exponent * own**config.target_exponent + config.shrink)
    np.fill_diagonal(table, 0)
    expected = table[3] + config.decay * table[0] + config.decay**2 * table[11]
    channel = item_knn.fit("knn", config, data)
    scores = channel.scores(Queries.of_histories(Ragged.of([[11, 0, 3]]), Ragged.empty(1)))[0]
    np.testing.assert_allclose(np.where(scores > 0, scores, 0), expected, rtol=1e-4, atol=1e-7)


def test_a_cosine_lies_between_0_and_1_and_is_symmetric(data: FitData) -> None:
    config = ItemKnnConfig(shrink=0, user_exponent=1, neighbours=None)
    table = item_knn.fit("knn", config, data).table.matrix().toarray()
    assert 0 < table.max() <= 1 + 1e-6
    np.testing.assert_allclose(table, table.T, rtol=1e-6)


def test_pruning_keeps_the_most_similar(data: FitData) -> None:
    whole = item_knn.fit("knn", ItemKnnConfig(neighbours=None), data).table.matrix().toarray()
    pruned = item_knn.fit("knn", ItemKnnConfig(neighbours=4), data).table.matrix().toarray()
    np.testing.assert_allclose(-np.sort(-pruned, axis=1)[:, :4], -np.sort(-whole, axis=1)[:, :4], rtol=1e-6)
    assert ((pruned > 0).sum(1) <= 4).all()
