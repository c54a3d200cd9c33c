import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import ConfigError
from recsys_ray.training.negatives import Draw, NegativeSampler, gather_with_gradient, slice_bounds

COUNTS = np.array([0, 1, 3, 6], np.int64)


def test_the_expected_counts_are_those_of_the_mixture() -> None:
    draw = NegativeSampler(COUNTS, 1000, 0.5, seed=0).draw(0)
    expected = 1000 * (0.5 / 4 + 0.5 * COUNTS / 10)
    np.testing.assert_allclose(draw.log_expected, np.log(expected)[draw.rows], rtol=1e-5)
    found = np.mean(
        [np.bincount(NegativeSampler(COUNTS, 1000, 0.5, 0).draw(s).rows, minlength=4) for s in range(50)], 0
    )
    np.testing.assert_allclose(found, expected, rtol=0.03)


def test_the_draw_depends_on_seed_and_step_alone() -> None:
    sampler = NegativeSampler(COUNTS, 100, 0.3, seed=7)
    first = sampler.draw(5).rows
    sampler.draw(6)
    np.testing.assert_array_equal(sampler.draw(5).rows, first)
    assert (sampler.draw(6).rows != first).any()
    assert (NegativeSampler(COUNTS, 100, 0.3, seed=8).draw(5).rows != first).any()


def test_by_popularity_alone_items_without_events_never_come() -> None:
    draw = NegativeSampler(COUNTS, 500, 1.0, seed=0).draw(0)
    assert draw.rows.min() == 1
    assert np.isfinite(draw.log_expected).all()


def test_all_items_once() -> None:
    draw = NegativeSampler(COUNTS, "all", 0.5, seed=0).draw(3)
    np.testing.assert_array_equal(draw.rows, np.arange(4))
    np.testing.assert_array_equal(draw.log_expected, np.zeros(4))


def test_popularity_without_events_is_refused() -> None:
    with pytest.raises(ConfigError, match="negatives_popularity"):
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
