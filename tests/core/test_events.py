import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.events import Events

USERS, ITEMS = 5, 7
COLUMNS = st.lists(st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, 4)), max_size=30)


def build(rows):
    users, items, times = (np.array([row[place] for row in rows], np.int64) for place in range(3))
    return Events.from_columns(users, items, times, np.arange(len(rows), dtype=np.float32), USERS, ITEMS)


@given(COLUMNS)
def test_each_users_events_are_in_time_order_and_ties_keep_the_input_order(rows):
    events = build(rows)
    for user in range(USERS):
        own = sorted((row for row in enumerate(rows) if row[1][0] == user), key=lambda row: (row[1][2], row[0]))
        here = slice(events.offsets[user], events.offsets[user + 1])
        assert events.items[here].tolist() == [row[1][1] for row in own]
        assert events.timestamps[here].tolist() == [row[1][2] for row in own]
        assert events.weights[here].tolist() == [float(row[0]) for row in own]
        assert events.histories[user].tolist() == [row[1][1] for row in own]
    assert events.num_users == USERS
    assert len(events) == len(rows)


@given(COLUMNS, st.data())
def test_where_keeps_what_the_mask_says(rows, data):
    events = build(rows)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(rows), max_size=len(rows))), bool)
    kept = events.where(mask)
    assert kept.users.tolist() == events.users[mask].tolist()
    assert kept.items.tolist() == events.items[mask].tolist()
    assert (kept.num_users, kept.num_items) == (USERS, ITEMS)


@given(COLUMNS)
def test_matrix_and_counts_against_loops(rows):
    events = build(rows)
    dense = np.zeros((USERS, ITEMS), np.float32)
    counts = np.zeros(ITEMS, np.int64)
    for user, item, _ in rows:
        dense[user, item] = 1
        counts[item] += 1
    assert np.array_equal(events.matrix().toarray(), dense)
    assert np.array_equal(events.item_counts(), counts)


def test_dates_are_told_from_positions():
    rows = [(0, 0, place) for place in range(5)]
    assert not build(rows).has_real_time
    assert build([(user, item, 1_700_000_000_000_000 + place) for user, item, place in rows]).has_real_time
    assert not build([]).has_real_time
