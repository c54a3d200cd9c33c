import datetime

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.errors import ConfigError, NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.recent import RecentConfig, fit

DAY_US, START_US = 86_400 * 1_000_000, 1_700_000_000_000_000


def make_data(start_us: int = START_US, **columns: pa.Array) -> FitData:
    """Item 0 appeared on day 0, item 1 on day 3, item 2 on day 1; item 3 never had an event."""
    items, days = np.array([0, 2, 0, 1, 2], np.int64), np.array([0, 1, 2, 3, 4], np.int64)
    users = np.zeros(5, np.int64)
    events = Events.from_columns(users, items, start_us + days * DAY_US, np.ones(5, np.float32), 1, 4)
    return FitData(events, pa.table({"item_id": ["a", "b", "c", "d"], **columns}), Fields())


def test_the_newest_first_event_comes_first() -> None:
    channel = fit("new", RecentConfig(), make_data())
    assert channel.order.tolist() == [1, 2, 0]
    np.testing.assert_allclose(channel.item_scores, [1 / 4, 1, 1 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize(
    "dates",
    [
        pa.array(["2024-03-01", "2024-02-29", None, "2024-03-02T00:00:00"]),
        pa.array([datetime.date(2024, 3, 1), datetime.date(2024, 2, 29), None, datetime.date(2024, 3, 2)]),
    ],
)
def test_a_date_field_says_when_items_appeared_without_any_real_time(dates: pa.Array) -> None:
    channel = fit("new", RecentConfig(field="released"), make_data(start_us=0, released=dates))
    assert channel.order.tolist() == [3, 0, 1]


def test_without_any_time_it_does_not_apply() -> None:
    with pytest.raises(NotApplicable, match="positions, not dates"):
        fit("new", RecentConfig(), make_data(start_us=0))


@pytest.mark.parametrize(
    ("field", "allowed"),
    [("nothing", "item_id, price, words"), ("price", "not double"), ("words", "dates or ISO texts")],
)
def test_a_field_that_holds_no_dates_is_named(field: str, allowed: str) -> None:
    data = make_data(price=pa.array([1.0, 2.0, 3.0, 4.0]), words=pa.array(["a", "b", "c", "d"]))
    with pytest.raises(ConfigError, match=rf"channels\.new\.field.*{allowed}"):
        fit("new", RecentConfig(field=field), data)
