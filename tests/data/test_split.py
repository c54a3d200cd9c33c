import numpy as np
import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.events import Events
from recsys_ray.data.dataset import fold_of
from recsys_ray.data.split import (
    TEST,
    TRAIN,
    UNUSED,
    VALIDATION,
    SplitConfig,
    cold_items,
    future_share,
    split_events,
)

USERS, ITEMS = 6, 8
YEAR_2024_US = 1_704_067_200_000_000


def build(rows):
    users, items, times = (np.array([row[place] for row in rows], np.int64) for place in range(3))
    return Events.from_columns(users, items, times, np.ones(len(rows), np.float32), USERS, ITEMS)


def rows(max_time):
    return st.lists(
        st.tuples(st.integers(0, USERS - 1), st.integers(0, ITEMS - 1), st.integers(0, max_time)),
        min_size=1,
        max_size=60,
    )


def queries(targets):
    return {
        int(user): (targets.history[row].tolist(), sorted(targets.items[row].tolist()), bool(targets.new_users[row]))
        for row, user in enumerate(targets.users)
    }


@given(rows(20))
def test_leave_one_out(raw):
    events = build(raw)
    [part] = split_events(events, SplitConfig(), None)
    fold = fold_of(events, part)
    validation, test = queries(fold.validation), queries(fold.test)
    for user in range(USERS):
        history = events.histories[user].tolist()
        if len(history) < 3:
            assert user not in validation
            assert user not in test
            assert fold.train.histories[user].tolist() == history
            continue
        assert fold.train.histories[user].tolist() == history[:-2]
        assert fold.train_validation.histories[user].tolist() == history[:-1]
        assert validation[user] == (history[:-2], history[-2:-1], False)
        assert test[user] == (history[:-1], history[-1:], False)
    for targets in (fold.validation, fold.test):
        assert targets.exclude is targets.history


@given(rows(1000), st.integers(1, 3), st.floats(0.05, 0.2))
def test_global_time(raw, cuts, window):
    events = build(raw)
    config = SplitConfig(protocol="global_time", cuts=cuts, window=window)
    try:
        parts = split_events(events, config, None)
    except DataError:
        reject()  # too many events share a moment
    assert len(parts) == cuts
    log = list(zip(events.users.tolist(), events.items.tolist(), events.timestamps.tolist(), strict=True))
    for part in parts:
        fold = fold_of(events, part)
        train_to = int(events.timestamps[part == TRAIN].max())
        used_to = int(events.timestamps[part != UNUSED].max())
        test_from = int(events.timestamps[(part == TEST) | (part == 4)].min())
        check_window(queries(fold.validation), log, train_to, train_to, test_from - 1)
        check_window(queries(fold.test), log, train_to, test_from - 1, used_to)
        assert len(fold.train) == sum(time <= train_to for _, _, time in log)
        assert len(fold.train_validation) == sum(time < test_from for _, _, time in log)
    assert int(events.timestamps[parts[-1] == UNUSED].size) == 0


def check_window(found, log, train_to, after, up_to):
    """Each user of the window once: all items of the window that are not in the history."""
    for user in range(USERS):
        history = [item for who, item, time in log if who == user and time <= after]
        wanted = {item for who, item, time in log if who == user and after < time <= up_to} - set(history)
        if not wanted:
            assert user not in found
            continue
        trained = any(who == user and time <= train_to for who, _, time in log)
        assert found[user] == (history, sorted(wanted), not trained)


def test_windows_of_global_time_follow_each_other_and_end_with_the_data():
    events = build([(place % USERS, place % ITEMS, place) for place in range(100)])
    parts = split_events(events, SplitConfig(protocol="global_time", cuts=3, window=0.1), None)
    bounds = [
        [int(events.timestamps[np.isin(part, codes)].min()) for codes in ((TRAIN,), (VALIDATION, 3), (TEST, 4))]
        for part in parts
    ]
    assert bounds == [[0, 60, 70], [0, 70, 80], [0, 80, 90]]
    assert [int((part != UNUSED).sum()) for part in parts] == [80, 90, 100]


@given(rows(5), st.data())
def test_given(raw, data):
    events = build(raw)
    parts = np.array(
        data.draw(st.lists(st.sampled_from([TRAIN, VALIDATION, TEST]), min_size=len(raw), max_size=len(raw))), np.int8
    )
    [part] = split_events(events, SplitConfig(protocol="given", validation_events="v", test_events="t"), parts)
    fold = fold_of(events, part)
    log = list(zip(events.users.tolist(), events.items.tolist(), parts.tolist(), strict=True))
    for targets, code, known in ((fold.validation, VALIDATION, {TRAIN}), (fold.test, TEST, {TRAIN, VALIDATION})):
        found = queries(targets)
        for user in range(USERS):
            wanted = {item for who, item, origin in log if who == user and origin == code}
            history = [item for who, item, origin in log if who == user and origin in known]
            trained = any(who == user and origin == TRAIN for who, _, origin in log)
            assert (user in found) == bool(wanted)
            if wanted:
                assert found[user] == (history, sorted(wanted), not trained)


PROTOCOLS = {
    "leave_one_out": {},
    "global_time": {"cuts": 2, "window": 0.15},
    "given": {"validation_events": "v", "test_events": "t"},
}


def split_with(events, protocol, parts, **changes):
    config = SplitConfig(protocol=protocol, **PROTOCOLS[protocol], **changes)
    try:
        return split_events(events, config, parts)
    except DataError:
        reject()  # too many events share a moment


@given(rows(1000), st.sampled_from(list(PROTOCOLS)), st.floats(0, 0.9), st.integers(0, 3), st.data())
def test_cold_items_are_in_no_training_and_no_history_and_still_asked_for(raw, protocol, share, seed, data):
    events = build(raw)
    codes = st.sampled_from([TRAIN, VALIDATION, TEST])
    given_parts = np.array(data.draw(st.lists(codes, min_size=len(raw), max_size=len(raw))), np.int8)
    cold = cold_items(events, share, seed)
    assert cold.sum() == round(share * len(np.unique(events.items)))
    assert set(np.flatnonzero(cold)) <= set(events.items.tolist())
    whole = split_with(events, protocol, given_parts)
    parts = split_with(events, protocol, given_parts, cold_items=share, seed=seed)
    for before, part in zip(whole, parts, strict=True):
        plain, fold = fold_of(events, before), fold_of(events, part)
        for one in (fold.train, fold.train_validation):
            assert not cold[one.items].any()
        kept = ~cold[plain.train.items]
        assert fold.train.items.tolist() == plain.train.items[kept].tolist()
        for warm, targets in ((plain.validation, fold.validation), (plain.test, fold.test)):
            assert targets.users.tolist() == warm.users.tolist()
            assert targets.items.values.tolist() == warm.items.values.tolist()  # cold or not: all remain as queries
            for row in range(len(targets)):
                # What was met is never offered; how often it was met makes no difference.
                assert set(targets.exclude[row].tolist()) == set(warm.exclude[row].tolist())
                met = warm.history[row]
                assert targets.history[row].tolist() == met[~cold[met]].tolist()


@given(rows(1000), st.sampled_from(list(PROTOCOLS)), st.integers(0, 3), st.data())
def test_without_cold_items_the_seed_changes_nothing(raw, protocol, seed, data):
    events = build(raw)
    codes = st.sampled_from([TRAIN, VALIDATION, TEST])
    given_parts = np.array(data.draw(st.lists(codes, min_size=len(raw), max_size=len(raw))), np.int8)
    before = split_with(events, protocol, given_parts)
    after = split_with(events, protocol, given_parts, cold_items=0.0, seed=seed)
    assert [part.tobytes() for part in before] == [part.tobytes() for part in after]
    assert all(set(np.unique(part)) <= set(range(UNUSED, 5)) for part in after)


def test_cold_items_follow_the_seed():
    events = build([(place % USERS, place % ITEMS, place) for place in range(40)])
    drawn = [cold_items(events, 0.5, seed) for seed in (0, 0, 1, 2)]
    assert (drawn[0] == drawn[1]).all()
    assert any((drawn[0] != other).any() for other in drawn[2:])
    assert [int(one.sum()) for one in drawn] == [ITEMS // 2] * 4


def test_the_share_of_the_future():
    positions = build([(0, place, place) for place in range(5)])
    assert not positions.has_real_time
    events = build([(user, place, YEAR_2024_US + 10 * user + place) for user in (0, 1) for place in range(4)])
    assert events.has_real_time
    [part] = split_events(events, SplitConfig(), None)
    # User 0's test event is followed by both training events of user 1; user 1's by none.
    assert future_share(events, part) == pytest.approx((2 / 4 + 0) / 2)
    [later] = split_events(events, SplitConfig(protocol="global_time", cuts=1, window=0.2), None)
    assert future_share(events, later) == 0.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"protocol": "random"}, "split.protocol: got 'random'; allowed: 'leave_one_out', 'global_time' or 'given'"),
        ({"cuts": 10, "window": 0.1}, r"\(cuts \+ 1\) \* window < 1"),
        ({"protocol": "given"}, "validation_events and test_events"),
        ({"test_events": "x"}, "only with protocol=given"),
        ({"cold_items": 1.0}, "split.cold_items: got 1.0"),
    ],
)
def test_wrong_settings_are_explained(values, message):
    with pytest.raises(ConfigError, match=message):
        SplitConfig.parse(values, "split")


def test_one_moment_cannot_be_cut():
    with pytest.raises(DataError, match="different times"):
        split_events(build([(0, 0, 5), (1, 1, 5)]), SplitConfig(protocol="global_time"), None)
    with pytest.raises(DataError, match="larger window or fewer cuts"):
        split_events(
            build([(0, 0, 1), *[(1, place, 5) for place in range(7)]]), SplitConfig(protocol="global_time"), None
        )
