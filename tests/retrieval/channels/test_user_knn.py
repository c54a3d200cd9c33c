import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import user_knn
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.user_knn import UserKnnConfig
from recsys_ray.retrieval.query import Queries

NUM_USERS, NUM_ITEMS = 50, 30


@pytest.fixture(scope="module")
def events() -> Events:
    rng = np.random.default_rng(1)
    users, items = rng.integers(0, NUM_USERS, 500), (rng.zipf(1.5, 500) - 1) % NUM_ITEMS
    return Events.from_columns(users, items, np.arange(500), np.ones(500, np.float32), NUM_USERS, NUM_ITEMS)


def data_of(events: Events) -> FitData:
    return FitData(events, pa.table({}), Fields())


@pytest.mark.parametrize("users", [3, 10, NUM_USERS])
def test_scores_follow_the_formula(events: Events, users: int) -> None:
    config = UserKnnConfig(users=users, item_exponent=0.4, target_exponent=0.3, decay=0.5)
    met = events.matrix().toarray().astype(float)
    popularity = np.maximum(met.sum(0), 1)
    profiles = met * popularity**-0.4
    profiles /= np.maximum(np.linalg.norm(profiles, axis=1, keepdims=True), 1e-12)
    query = np.zeros(NUM_ITEMS)
    query[[2, 7]] = 0.5 * popularity[2] ** -0.4, popularity[7] ** -0.4
    likeness = profiles @ query
    asked = np.argsort(-likeness, kind="stable")[:users]
    expected = likeness[asked] @ met[asked] * popularity**-0.3
    channel = user_knn.fit("people", config, data_of(events))
    scores = channel.scores(Queries.of_histories(Ragged.of([[2, 7]]), Ragged.empty(1)))[0]
    np.testing.assert_allclose(np.where(scores > 0, scores, 0), expected, rtol=1e-4, atol=1e-7)


def test_a_popular_item_is_found_by_its_latest_people_alone(events: Events) -> None:
    channel = user_knn.fit("people", UserKnnConfig(postings=4), data_of(events))
    counts = np.diff(channel.postings.indptr)
    assert counts.max() <= 4
    popular = int(events.item_counts().argmax())
    last = events.timestamps.copy()
    last[events.items != popular] = -1
    latest = set(events.users[np.argsort(-last)[:4]].tolist())
    start, end = channel.postings.indptr[popular : popular + 2]
    assert set(channel.postings.indices[start:end].tolist()) == latest


def test_it_answers_from_an_empty_log() -> None:
    none = Events.from_columns(*(np.zeros(0, np.int64),) * 3, np.zeros(0, np.float32), 0, NUM_ITEMS)
    channel = user_knn.fit("people", UserKnnConfig(), data_of(none))
    found = channel.retrieve(Queries.of_histories(Ragged.of([[1]])), 5)
    assert (found.rows == -1).all()
