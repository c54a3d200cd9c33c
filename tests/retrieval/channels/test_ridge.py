import numpy as np
import pytest
import scipy.sparse as sp
from scipy.linalg import cho_factor

from recsys_ray.retrieval.channels import ridge
from recsys_ray.retrieval.channels.ridge import inverse, rarer_half, solve_locally

NUM_ITEMS = 50


@pytest.fixture(scope="module")
def gram() -> sp.csr_matrix:
    met = sp.random(80, NUM_ITEMS, 0.1, "csr", np.float32, np.random.default_rng(0))
    met.data[:] = 1
    return sp.csr_matrix(met.T @ met)


def blocks_of(matrix: sp.csr_matrix, size: int = 20) -> list[tuple[int, sp.csr_matrix]]:
    return [(start, matrix[start : start + size]) for start in range(0, matrix.shape[0], size)]


def halves_of(matrix: sp.csr_matrix) -> sp.csr_matrix:
    return sp.vstack([rarer_half(block, ranks_of(matrix)) for block in blocks_of(matrix)], "csr")


def ranks_of(matrix: sp.csr_matrix) -> np.ndarray:
    return np.argsort(np.argsort(matrix.diagonal(), kind="stable"))


def test_the_inverse_is_that_of_the_known_rows_and_columns(gram: sp.csr_matrix) -> None:
    known = np.array([0, 3, 4, 21, 22, 40, 49])
    expected = np.linalg.inv(gram.toarray()[np.ix_(known, known)].astype(np.float64) + 2 * np.eye(len(known)))
    np.testing.assert_allclose(inverse(blocks_of(gram), known, 2.0), expected, rtol=1e-4, atol=1e-6)


def test_a_large_inverse_is_symmetric_and_right() -> None:
    rng = np.random.default_rng(1)
    half = rng.standard_normal((1500, 1500)).astype(np.float32)
    matrix = half @ half.T / 1500
    found = inverse([(0, sp.csr_matrix(matrix))], np.arange(1500), 1.0)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found @ (matrix + np.eye(1500)), np.eye(1500), atol=1e-4)
    assert cho_factor(found)[0].shape == found.shape


def test_each_pair_lies_in_the_row_of_its_rarer_item(gram: sp.csr_matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = ranks_of(gram)
    half = halves_of(gram).toarray()
    rows, columns = np.nonzero(half)
    assert (rank[rows] <= rank[columns]).all()
    np.testing.assert_array_equal(half + half.T - np.diag(half.diagonal()), gram.toarray())
    monkeypatch.setattr(ridge, "GRAM_NEIGHBOURS", 2)
    assert (np.count_nonzero(halves_of(gram).toarray(), axis=1) <= 2).all()


@pytest.mark.parametrize("batch_cells", [1, 100, 1_000_000])
def test_local_solutions_are_those_of_each_small_system(
    gram: sp.csr_matrix, batch_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "_BATCH_CELLS", batch_cells)
    dense = sp.random(NUM_ITEMS, NUM_ITEMS, 0.12, "csr", np.float32, np.random.default_rng(2)).toarray()
    dense[7] = 0
    targets = sp.csr_matrix(dense)
    expected = np.zeros(targets.shape)
    for row, values in enumerate(dense):
        chosen = np.flatnonzero(values)
        small = gram.toarray()[np.ix_(chosen, chosen)] + 3 * np.eye(len(chosen))
        expected[row, chosen] = np.linalg.solve(small, values[chosen])
    found = solve_locally(halves_of(gram), ranks_of(gram), targets, 3.0)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(targets.toarray(), dense)


def test_regression_on_all_others_is_the_whole_inverse(gram: sp.csr_matrix) -> None:
    """b_j = -P_j / P_jj solves the regression of j on all other items."""
    others = sp.csr_matrix(gram - sp.diags(gram.diagonal()) + 1e-30 * (1 - np.eye(NUM_ITEMS)), dtype=np.float32)
    found = solve_locally(halves_of(gram), ranks_of(gram), others, 5.0).toarray().T
    precision = inverse(blocks_of(gram), np.arange(NUM_ITEMS), 5.0)
    expected = -precision / np.diag(precision)
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
