import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import rp3beta
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.rp3beta import Rp3BetaConfig
from recsys_ray.retrieval.query import Queries

NUM_USERS, NUM_ITEMS = 70, 30


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.6, 0.4)])
def test_scores_follow_the_transition_matrices(alpha: float, beta: float) -> None:
    rng = np.random.default_rng(5)
    users, items = rng.integers(0, NUM_USERS, 600), (rng.zipf(1.4, 600) - 1) % (NUM_ITEMS - 1)
    events = Events.from_columns(users, items, np.arange(600), np.ones(600), NUM_USERS, NUM_ITEMS)
    met = events.matrix().toarray().astype(float)
    to_users = (met.T / np.maximum(met.sum(0), 1)[:, None]) ** alpha
    to_items = (met / np.maximum(met.sum(1), 1)[:, None]) ** alpha
    table = to_users @ to_items / np.maximum(met.sum(0), 1) ** beta
    np.fill_diagonal(table, 0)
    config = Rp3BetaConfig(alpha=alpha, beta=beta, decay=0.5)
    channel = rp3beta.fit("walk", config, FitData(events, pa.table({}), Fields()))
    scores = channel.scores(Queries.of_histories(Ragged.of([[2, 7]]), Ragged.empty(1)))[0]
    np.testing.assert_allclose(np.where(scores > 0, scores, 0), table[7] + 0.5 * table[2], rtol=1e-4, atol=1e-7)
