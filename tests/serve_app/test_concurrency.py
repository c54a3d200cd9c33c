"""The limit against machines that work on a clock of the test's own."""

import heapq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.concurrency import AdaptiveLimit

DEADLINE_S = 1.0


def overload(limit: AdaptiveLimit, work_s: float, count: int, cores: int = 1, start: float = 0.0) -> list[float]:
    """What each answer took, at three times the arrivals that the cores can work off.

    Requests beyond the limit are refused; the others wait until a core is free.
    """
    took: list[float] = []
    free = [start] * cores
    under_way: list[tuple[float, float]] = []  # ends, came
    for number in range(count):
        now = start + number * work_s / cores / 3
        while under_way and under_way[0][0] <= now:
            ends, came = heapq.heappop(under_way)
            limit.end(ends)
            took.append(ends - came)
        if limit.in_flight < limit.limit:
            limit.begin(now)
            ends = max(heapq.heappop(free), now) + work_s
            heapq.heappush(free, ends)
            heapq.heappush(under_way, (ends, now))
    while under_way:
        limit.end(heapq.heappop(under_way)[0])
    return took


@pytest.mark.parametrize("cores", [1, 4])
def test_a_slow_machine_takes_on_no_more_than_it_answers_in_time(cores: int) -> None:
    limit, work_s = AdaptiveLimit(256, DEADLINE_S), 0.02 * cores
    took = overload(limit, work_s, 3000, cores)
    assert 256 * work_s / cores > 2 * DEADLINE_S  # with as many as may be under way at most, all would be late
    assert max(took[300:]) < DEADLINE_S
    assert len(took) > 0.95 * 3000 / 3  # and no core is idle for it
    assert limit.limit == pytest.approx(DEADLINE_S / 4 / (work_s / cores), abs=2)


def test_a_quick_machine_keeps_the_whole_limit() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    overload(limit, 0.002, 3000)
    assert limit.limit == 64


def test_it_follows_a_machine_that_slows_down_and_recovers() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    overload(limit, 0.002, 600)
    took = overload(limit, 0.05, 1500, start=100.0)
    assert max(took[-200:]) < DEADLINE_S
    overload(limit, 0.002, 1500, start=1000.0)
    assert limit.limit == 64


def test_time_without_work_is_not_counted() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    for hour in range(10):
        limit.begin(3600.0 * hour)
        limit.end(3600.0 * hour + 0.001)
    assert limit.limit == 64


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=100), st.integers(1, 64))
def test_it_stays_within_its_bounds(steps: list[tuple[bool, float]], most: int) -> None:
    limit, now = AdaptiveLimit(most, DEADLINE_S), 0.0
    for begins, wait in steps:
        now += wait
        if begins:
            limit.begin(now)
        elif limit.in_flight:
            limit.end(now)
        assert min(8, most) <= limit.limit <= most
