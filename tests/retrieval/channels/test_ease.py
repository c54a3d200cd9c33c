import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import ease
from recsys_ray.retrieval.channels.ease import EaseConfig
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.query import Queries

NUM_USERS, NUM_ITEMS = 200, 40


@pytest.fixture(scope="module")
def data() -> FitData:
    rng = np.random.default_rng(5)
    users = rng.integers(0, NUM_USERS, 1500)
    items = 1 + (rng.zipf(1.4, 1500) - 1) % (NUM_ITEMS - 2)  # the first and the last item have no event
    events = Events.from_columns(users, items, np.arange(1500), np.ones(1500), NUM_USERS, NUM_ITEMS)
    return FitData(events, pa.table({}), Fields())


def formula(data: FitData, config: EaseConfig) -> np.ndarray:
    met = data.events.matrix().toarray().astype(np.float64)
    weighted = met / np.log2(2 + met.sum(1, keepdims=True)) ** config.user_exponent
    precision = np.linalg.inv(met.T @ weighted + config.penalty * np.eye(NUM_ITEMS))
    weights = -precision / np.diag(precision)
    np.fill_diagonal(weights, 0)
    return weights


@pytest.mark.parametrize("config", [EaseConfig(penalty=20, user_exponent=0), EaseConfig(penalty=3, user_exponent=1)])
def test_weights_follow_the_closed_form(data: FitData, config: EaseConfig) -> None:
    table = ease.fit("ease", config, data).table.matrix().toarray()
    np.testing.assert_allclose(table, formula(data, config), atol=1e-5)
    assert (table < 0).any()


def test_negative_weights_lower_scores(data: FitData) -> None:
    config = EaseConfig(penalty=5, decay=0.7)
    history = [4, 9, 2, 17]
    scores = ease.fit("ease", config, data).scores(Queries.of_histories(Ragged.of([history]), Ragged.empty(1)))[0]
    expected = 0.7 ** np.arange(3, -1, -1) @ formula(data, config)[history]
    np.testing.assert_allclose(scores, np.where(scores > 0, expected, -np.inf), rtol=1e-4, atol=1e-5)
    assert (expected[scores <= 0] < 1e-5).all()


def test_pruning_keeps_the_weights_farthest_from_zero(data: FitData) -> None:
    table = ease.fit("ease", EaseConfig(neighbours=6), data).table.matrix().toarray()
    whole = formula(data, EaseConfig())
    assert (np.count_nonzero(table, axis=1) <= 6).all()
    np.testing.assert_allclose(np.abs(table).max(1), np.abs(whole).max(1), rtol=1e-4, atol=1e-7)


def test_small_memory_gives_local_regressions_and_says_so(data: FitData, capsys: pytest.CaptureFixture[str]) -> None:
    small = EaseConfig(penalty=5, user_exponent=0, memory_bytes=4 * 38**2 - 1, regressors=7)
    table = ease.fit("mine", small, data).table.matrix().toarray()
    assert "mine: the inverse of 38 items" in capsys.readouterr().err
    met = data.events.matrix().toarray().astype(np.float64)
    gram = met.T @ met
    for item in range(NUM_ITEMS):
        counts = np.where(np.arange(NUM_ITEMS) == item, 0, gram[item])
        chosen = np.lexsort((np.arange(NUM_ITEMS), -counts))[: min(7, np.count_nonzero(counts))]
        expected = np.zeros(NUM_ITEMS)
        ridge = gram[np.ix_(chosen, chosen)] + 5 * np.eye(len(chosen))
        expected[chosen] = np.linalg.solve(ridge, gram[chosen, item])
        np.testing.assert_allclose(table[:, item], expected, atol=1e-5)


def test_the_inverse_is_solved_where_it_just_fits(data: FitData, capsys: pytest.CaptureFixture[str]) -> None:
    ease.fit("mine", EaseConfig(memory_bytes=4 * 38**2), data)
    assert "is solved" in capsys.readouterr().err
