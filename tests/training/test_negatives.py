from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import DataError
from recsys_ray.training.negatives import Draw, NegativeSampler, gather_with_gradient, slice_bounds

COUNTS = np.tile(np.array([0, 1, 3, 6], np.int64), 500)


def test_the_expected_counts_are_those_of_the_mixture() -> None:
    draw = NegativeSampler(COUNTS, 1000, 0.5, seed=0).draw(0)
    expected = 1000 * np.where(COUNTS, 0.5 / 1500 + 0.5 * COUNTS / 5000, 0)
    np.testing.assert_allclose(draw.log_expected, np.log(expected[draw.rows]), rtol=1e-5)
    sampler = NegativeSampler(COUNTS, 1000, 0.5, 0)
    found = np.mean([np.bincount(sampler.draw(step).rows % 4, minlength=4) for step in range(50)], 0)
    np.testing.assert_allclose(found, expected.reshape(500, 4).sum(0), rtol=0.03)


def test_the_draw_depends_on_seed_and_step_alone() -> None:
    sampler = NegativeSampler(COUNTS, 100, 0.3, seed=7)
    first = sampler.draw(5).rows
    sampler.draw(6)
    np.testing.assert_array_equal(sampler.draw(5).rows, first)
    assert (sampler.draw(6).rows != first).any()
    assert (NegativeSampler(COUNTS, 100, 0.3, seed=8).draw(5).rows != first).any()


@pytest.mark.parametrize("popularity", [0.0, 0.5, 1.0])
def test_items_without_events_never_come(popularity: float) -> None:
    draw = NegativeSampler(COUNTS, 500, popularity, seed=0).draw(0)
    assert COUNTS[draw.rows].min() == 1
    assert np.isfinite(draw.log_expected).all()


@pytest.mark.parametrize("count", ["all", 1500, 5000])
def test_a_catalogue_that_is_no_larger_comes_whole(count: int | Literal["all"]) -> None:
    draw = NegativeSampler(COUNTS, count, 0.5, seed=0).draw(3)
    np.testing.assert_array_equal(draw.rows, np.flatnonzero(COUNTS))
    np.testing.assert_array_equal(draw.log_expected, np.zeros(1500))


def test_a_catalogue_without_events_is_refused() -> None:
    with pytest.raises(DataError, match="no negatives to draw"):
        NegativeSampler(np.zeros(3, np.int64), 10, 0.5, seed=0)


@given(st.integers(0, 50), st.integers(1, 7))
def test_slices_cover_the_draw_once(count: int, world_size: int) -> None:
    draw = Draw(np.arange(count), np.zeros(count, np.float32))
    slices = [draw.slice_of(rank, world_size) for rank in range(world_size)]
    np.testing.assert_array_equal(np.concatenate(slices), draw.rows)
    sizes = [end - start for start, end in (slice_bounds(count, rank, world_size) for rank in range(world_size))]
    assert max(sizes) == -(-count // world_size)


def test_alone_there_is_nothing_to_gather() -> None:
    vectors = torch.ones(3, 2, requires_grad=True)
    assert gather_with_gradient(vectors, 3) is vectors
