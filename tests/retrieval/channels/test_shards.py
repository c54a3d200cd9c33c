import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels import shards
from recsys_ray.retrieval.channels.shards import add_up, in_this_process, user_shards, users_between


def events_of_lengths(lengths: list[int]) -> Events:
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = np.random.default_rng(0).integers(0, 9, len(users))
    return Events.from_columns(users, items, np.arange(len(users)), np.ones(len(users)), len(lengths), 9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=30), st.integers(1, 20))
def test_shards_hold_every_user_once_and_few_events(lengths: list[int], size: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_EVENTS", size)
        events = events_of_lengths(lengths)
        bounds = user_shards(events)
    assert [bound for pair in bounds for bound in pair][::2] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == len(lengths)
    parts = [users_between(events, start, stop) for start, stop in bounds]
    np.testing.assert_array_equal(np.concatenate([part.items for part in parts]), events.items)
    assert all(len(part) < size + max(lengths, default=0) for part in parts)
    assert [part.num_users for part in parts] == [stop - start for start, stop in bounds]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 20))
def test_add_up_is_the_sum(count: int) -> None:
    parts = [sp.random(4, 5, 0.5, "csr", np.float32, np.random.default_rng(seed)) for seed in range(count)]
    np.testing.assert_allclose(add_up(parts).toarray(), sum(part.toarray() for part in parts), rtol=1e-6)


def test_every_shard_is_counted_in_order() -> None:
    events = events_of_lengths([2, 0, 3])
    (found,) = in_this_process(lambda shard: sp.csr_matrix(np.diff(shard.offsets)), events)
    assert found.toarray().tolist() == [[2, 0, 3]]
