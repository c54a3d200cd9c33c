from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.config import override
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import matrix_factorisation
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.matrix_factorisation import LeastSquares, MatrixFactorisationConfig, factorise
from recsys_ray.retrieval.channels.table import SparseRows, decayed
from recsys_ray.retrieval.query import Queries

NUM_USERS, NUM_ITEMS, DIM = 40, 30, 5
CONFIG = MatrixFactorisationConfig(dim=DIM, unobserved=0.2, regularisation=0.01, exponent=0.8, iterations=6)


def random_matrix(seed: int = 0) -> sp.csr_matrix:
    rng = np.random.default_rng(seed)
    seen = (rng.random((NUM_USERS, NUM_ITEMS)) < 0.2).astype(np.float32)
    seen[3], seen[:, 7] = 0, 0
    return sp.csr_matrix(seen)


def random_vectors(seed: int = 1) -> FloatArray:
    return np.random.default_rng(seed).standard_normal((NUM_ITEMS, DIM)).astype(np.float32)


def steps_of(matrix: sp.csr_matrix) -> SparseRows:
    return SparseRows(Ragged(matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)), matrix.data)


def solved_one_by_one(vectors: FloatArray, weights: np.ndarray, unobserved: float, penalties: np.ndarray) -> np.ndarray:
    """The minimum of each row's weighted squares, as the formula is written, in float64."""
    wide = vectors.astype(np.float64)
    identity = np.eye(vectors.shape[1])
    return np.array(
        [
            np.linalg.solve(wide.T @ np.diag(row + unobserved) @ wide + penalty * identity, wide.T @ row)
            for row, penalty in zip(weights.astype(np.float64), penalties, strict=True)
        ]
    )


def loss(seen: np.ndarray, users: np.ndarray, items: np.ndarray, config: MatrixFactorisationConfig) -> float:
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    squares = (seen * (1 - scores) ** 2).sum() + config.unobserved * (scores**2).sum()
    of_users = (seen.sum(1) + config.unobserved * NUM_ITEMS) ** config.exponent @ (users**2).sum(1)
    of_items = (seen.sum(0) + config.unobserved * NUM_USERS) ** config.exponent @ (items**2).sum(1)
    return float(squares + config.regularisation * (of_users + of_items))


@pytest.mark.parametrize("block_values", [1, 200, 8_000_000])
def test_a_half_step_solves_the_normal_equations(block_values: int) -> None:
    vectors, seen = random_vectors(), random_matrix()
    seen.data *= np.random.default_rng(2).random(seen.nnz, np.float32)
    solve = replace(LeastSquares.of(vectors, CONFIG), block_values=block_values)
    weights = seen.toarray()
    penalties = CONFIG.regularisation * (weights.sum(1) + CONFIG.unobserved * NUM_ITEMS) ** CONFIG.exponent
    expected = solved_one_by_one(vectors, weights, CONFIG.unobserved, penalties)
    np.testing.assert_allclose(solve(steps_of(seen)), expected, atol=1e-4)


def test_every_iteration_lowers_the_loss() -> None:
    seen = random_matrix()
    losses = []
    for iterations in range(1, 12):
        items = factorise(seen, override(CONFIG, {"iterations": iterations}))
        users = LeastSquares.of(items, CONFIG)(steps_of(seen))
        losses.append(loss(seen.toarray(), users, items, CONFIG))
    assert (np.diff(losses) < 0).all()


def test_scores_are_those_of_the_users_own_half_step() -> None:
    rows = [[0, 1, 2], [2, 3], [1, 4, 1, 5], [0, 5, 3]]
    users = np.repeat(np.arange(4), [len(row) for row in rows])
    items = np.concatenate(rows)
    events = Events.from_columns(users, items, np.arange(len(items)), np.ones(len(items), np.float32), 4, 7)
    catalogue = pa.table({"item_id": [str(row) for row in range(7)]})
    config = override(CONFIG, {"decay": 1.0, "dim": 3})
    channel = matrix_factorisation.fit("mf", config, FitData(events, catalogue, Fields()))
    users_vectors = LeastSquares.of(channel.vectors, config)(steps_of(events.matrix()))
    expected = users_vectors @ channel.vectors.T
    expected[:, 6] = -np.inf  # nobody met it
    queries = Queries.of_histories(Ragged.of(rows), Ragged.empty(4))
    np.testing.assert_allclose(channel.scores(queries), expected, atol=1e-5)


def test_older_steps_count_less() -> None:
    vectors = random_vectors()
    solve = LeastSquares.of(vectors, CONFIG)
    found = solve(decayed(Ragged.of([[4, 9]]), 0.5, 10))
    weights = np.zeros((1, NUM_ITEMS))
    weights[0, [4, 9]] = 0.5, 1.0
    penalty = CONFIG.regularisation * (1.5 + CONFIG.unobserved * NUM_ITEMS) ** CONFIG.exponent
    expected = solved_one_by_one(vectors, weights, CONFIG.unobserved, np.array([penalty]))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.filterwarnings("ignore:OpenBLAS is configured to use:RuntimeWarning")
def test_a_half_step_equals_the_one_of_implicit() -> None:
    """Its observed pairs have weight 1 / a beside ours: the same scores, all larger by 1 + a."""
    als = pytest.importorskip("implicit.cpu.als")
    config = override(CONFIG, {"exponent": 0.0})
    vectors, seen = random_vectors(), random_matrix()
    peer = als.AlternatingLeastSquares(DIM, regularization=config.regularisation / config.unobserved)
    peer.item_factors = vectors
    confidence = sp.csr_matrix(seen * np.float32(1 + 1 / config.unobserved))
    expected = peer.recalculate_user(np.arange(NUM_USERS), confidence) @ vectors.T
    ours = LeastSquares.of(vectors, config)(steps_of(seen)) @ vectors.T
    np.testing.assert_allclose(ours * (1 + config.unobserved), expected, atol=1e-4)
