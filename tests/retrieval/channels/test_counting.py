from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import counting, shards
from recsys_ray.retrieval.channels.counting import (
    co_occurrences,
    damped,
    item_weights,
    scaled,
    shrinking,
    visited_pairs,
    without_diagonal,
)
from recsys_ray.retrieval.channels.fit_data import FitData

NUM_ITEMS = 6
Sequences = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8), min_size=1, max_size=6)


@pytest.fixture(autouse=True, params=[(1, 1), (5, 7), (1000, 1000)])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One user and one row at a time, some, and all at once."""
    monkeypatch.setattr(shards, "SHARD_EVENTS", request.param[0])
    monkeypatch.setattr(counting, "BLOCK_CELLS", request.param[1])


def data_of(sequences: list[list[int]]) -> FitData:
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = np.array([item for sequence in sequences for item in sequence], np.int64)
    ones = np.ones(len(items), np.float32)
    events = Events.from_columns(users, items, np.arange(len(items)), ones, len(sequences), NUM_ITEMS)
    return FitData(events, pa.table({"item_id": [str(row) for row in range(NUM_ITEMS)]}), Fields())


def whole(blocks: list[counting.Block]) -> np.ndarray:
    assert [start for start, _ in blocks] == [0, *np.cumsum([block.shape[0] for _, block in blocks[:-1]])]
    assert all(block.has_canonical_format for _, block in blocks)
    return np.concatenate([block.toarray() for _, block in blocks])


@settings(max_examples=50, deadline=None)
@given(Sequences, st.integers(1, 4), st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from([0.0, 0.3, 1.0]))
def test_pairs_are_counted_as_a_double_loop_counts_them(
    sequences: list[list[int]], window: int, exponent: float, transpose: float
) -> None:
    expected = np.zeros((NUM_ITEMS, NUM_ITEMS))
    for sequence in sequences:
        for later, item in enumerate(sequence):
            for earlier in range(max(0, later - window), later):
                expected[sequence[earlier], item] += (later - earlier) ** -exponent
    counted = whole(list(visited_pairs(data_of(sequences), window, exponent, transpose)))
    np.testing.assert_allclose(counted, expected + transpose * expected.T, rtol=1e-5)


@settings(max_examples=50, deadline=None)
@given(Sequences)
def test_co_occurrences_are_the_weighted_product(sequences: list[list[int]]) -> None:
    data = data_of(sequences)
    dense = np.array([[item in sequence for item in range(NUM_ITEMS)] for sequence in sequences], float)
    weights = 1 / np.log2(2 + dense.sum(1)) ** 1.5
    weigh = partial(damped, exponent=1.5)
    expected = dense.T @ (weights[:, None] * dense)
    np.testing.assert_allclose(whole(list(co_occurrences(data, weigh))), expected, rtol=1e-5)
    np.testing.assert_allclose(item_weights(data.events, weigh), np.diag(expected), rtol=1e-5)
    off = [(start, without_diagonal((start, block))[1]) for start, block in co_occurrences(data, weigh)]
    np.testing.assert_allclose(whole(off), expected - np.diag(np.diag(expected)), rtol=1e-5)


def test_rows_and_columns_are_scaled() -> None:
    data, sizes = data_of([[0, 1, 2, 5], [1, 2, 3]]), np.arange(1, 7, dtype=np.float32)
    blocks = list(co_occurrences(data, partial(shrinking, exponent=1.0)))
    expected = sizes[:, None] ** -2 * whole(blocks) * sizes**-0.5
    found = np.concatenate([scaled(block, sizes, 2.0, 0.5).toarray() for block in blocks])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
