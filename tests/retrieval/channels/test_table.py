import numpy as np
import pytest
import scipy.sparse as sp

from recsys_ray.core.arrays import Ragged
from recsys_ray.retrieval.candidates import top_k
from recsys_ray.retrieval.channels.table import Table, decayed, evidence, prune
from recsys_ray.retrieval.query import Queries


def signed(num_items: int, density: float) -> sp.csr_matrix:
    rng = np.random.default_rng(3)
    matrix = sp.random(num_items, num_items, density, "csr", np.float32, rng)
    matrix.data = np.round(4 * matrix.data - 2).astype(np.float32)
    matrix.eliminate_zeros()
    return matrix


@pytest.mark.parametrize("neighbours", [1, 4, 50])
def test_pruning_keeps_the_values_farthest_from_zero_and_of_ties_the_first(neighbours: int) -> None:
    matrix = signed(40, 0.4)
    expected = np.zeros(matrix.shape, np.float32)
    for row, values in enumerate(matrix.toarray()):
        kept = np.lexsort((np.arange(len(values)), -np.abs(values)))[:neighbours]
        expected[row, kept] = values[kept]
    pruned = prune(matrix, neighbours)
    np.testing.assert_array_equal(pruned.toarray(), expected)
    assert pruned.has_canonical_format


def test_no_limit_keeps_all() -> None:
    matrix = signed(10, 0.3)
    assert prune(matrix, None) is matrix


@pytest.mark.parametrize("density", [0.02, 0.4])
def test_negative_entries_count_in_sums_and_sums_below_zero_are_no_evidence(density: float) -> None:
    table, dense = Table.of(signed(300, density)), signed(300, density).toarray()
    histories = Ragged.of([[1, 2, 3], [4], [7, 8, 200, 100]])
    queries, steps = Queries.of_histories(histories), decayed(histories, 1.0, 10)
    sums = np.stack([dense[history].sum(0) for history in (histories[row] for row in range(3))])
    scores = evidence(queries, table.scores(steps))
    for row in range(3):
        sums[row, histories[row]] = -np.inf
    np.testing.assert_allclose(scores, np.where(sums > 0, sums, -np.inf), rtol=1e-6)
    for row in range(3):
        found = table.best(steps.slice(row, row + 1), queries.take(np.array([row])), 20)
        np.testing.assert_array_equal(found.rows, top_k(scores[row : row + 1], 20).rows)
