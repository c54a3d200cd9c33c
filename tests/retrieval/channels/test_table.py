import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.arrays import Ragged
from recsys_ray.retrieval.channels import table
from recsys_ray.retrieval.channels.table import SparseRows, Table
from recsys_ray.retrieval.query import Queries

R, N = 9, 12
Reads = st.lists(st.lists(st.integers(0, R - 1), max_size=6), min_size=1, max_size=5)


def make(density: float, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    return Table.of(sp.csr_matrix(rng.random((R, N)) * (rng.random((R, N)) < density)))


def read(reads: list[list[int]], seed: int) -> SparseRows:
    columns = Ragged.of(reads)
    return SparseRows(columns, np.random.default_rng(seed).random(len(columns.values)).astype(np.float32))


@settings(max_examples=50, deadline=None)
@given(Reads, st.sampled_from([0.05, 0.3, 1.0]), st.integers(0, 5))
def test_scores_are_the_sum_in_order_to_the_last_bit(reads: list[list[int]], density: float, seed: int) -> None:
    """Sparse and dense products, and the one-query path, all add in the order of the history, in float64."""
    tables, rows = make(density, seed), read(reads, seed)
    dense = tables.matrix().toarray().astype(np.float64)
    expected = np.zeros((len(reads), N))
    for place, (query, column) in enumerate(zip(rows.columns.row_of_value, rows.columns.values, strict=True)):
        expected[query] += dense[column] * np.float64(rows.values[place])
    found = tables.scores(rows)
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    queries = Queries.of_histories(rows.columns, Ragged.empty(len(reads)))
    together = tables.best(rows, queries, 4)
    for query in range(len(reads)):
        alone = tables.best(rows.slice(query, query + 1), queries.take(np.array([query])), 4)
        np.testing.assert_array_equal(alone.rows[0], together.rows[query])
        np.testing.assert_array_equal(alone.scores[0], together.scores[query])


def test_blocks_of_queries_answer_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, rows = make(0.4, 1), read([[0, 3], [], [8], [2, 2, 1]], 1)
    whole = tables.scores(rows)
    monkeypatch.setattr(table, "_BLOCK_VALUES", 2 * N)
    np.testing.assert_array_equal(tables.scores(rows), whole)
