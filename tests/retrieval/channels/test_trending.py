import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.errors import NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.trending import TrendingConfig, count_newest, fit

START_US, ITEMS = 1_700_000_000_000_000, 5


def make_events(items: list[int], times: list[int]) -> Events:
    users = np.arange(len(items)) % 3
    rows, moments = np.array(items, np.int64), START_US + np.array(times, np.int64)
    return Events.from_columns(users, rows, moments, np.ones(len(items), np.float32), 3, ITEMS)


@given(
    st.lists(st.tuples(st.integers(0, ITEMS - 1), st.integers(0, 20)), min_size=1, max_size=30),
    st.sampled_from([0.1, 0.34, 0.5, 1.0]),
    st.sampled_from([0.0, 1.0, 2.5]),
)
def test_counts_equal_a_loop_over_the_newest_events(
    rows: list[tuple[int, int]], window: float, half_lives: float
) -> None:
    times = sorted(time for _, time in rows)
    start, end = times[min(int(len(times) * (1 - window)), len(times) - 1)], times[-1]
    expected = np.zeros(ITEMS)
    for item, time in rows:
        if time >= start:
            expected[item] += 2.0 ** (-half_lives * (end - time) / max(end - start, 1))
    items, moments = zip(*rows, strict=True)
    found = count_newest(make_events(list(items), list(moments)), window, half_lives)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_what_was_popular_of_late_comes_first() -> None:
    events = make_events([0] * 10 + [1] * 3, [*range(10), 20, 21, 22])
    data = FitData(events, pa.table({"item_id": [str(row) for row in range(ITEMS)]}), Fields())
    assert fit("late", TrendingConfig(window=0.2), data).order.tolist() == [1]
    assert fit("late", TrendingConfig(window=1.0), data).order.tolist() == [0, 1]


def test_positions_in_a_history_are_no_time() -> None:
    users = np.zeros(3, np.int64)
    events = Events.from_columns(users, users, np.arange(3), np.ones(3, np.float32), 1, ITEMS)
    with pytest.raises(NotApplicable, match="positions, not dates"):
        fit("late", TrendingConfig(), FitData(events, pa.table({}), Fields()))
