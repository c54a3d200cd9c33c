"""The limit against a machine that works through requests one after the other, on a clock of the test's own."""

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from serve_app.concurrency import AdaptiveLimit

DEADLINE_S = 1.0


def overload(limit: AdaptiveLimit, work_s: float, arrivals: int, every_s: float) -> list[float]:
    """What each answer took: requests come every so often, are refused beyond the limit, and wait for their turn."""
    took: list[float] = []
    under_way: deque[tuple[float, float]] = deque()  # came, ends
    free_at = 0.0
    for number in range(arrivals):
        now = number * every_s
        while under_way and under_way[0][1] <= now:
            came, ends = under_way.popleft()
            limit.observe(ends - came, len(under_way) + 1, ends)
            took.append(ends - came)
        if len(under_way) < limit.limit:
            free_at = max(free_at, now) + work_s
            under_way.append((now, free_at))
    return took


def test_a_slow_machine_takes_on_no_more_than_it_answers_in_time() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    took = overload(limit, work_s=0.05, arrivals=6000, every_s=0.05 / 3)
    assert DEADLINE_S < 64 * 0.05  # as many as may be under way at most would all be late
    assert max(took[-500:]) < DEADLINE_S
    assert len(took) * 0.05 > 0.95 * 6000 * 0.05 / 3  # and the machine is never idle for it


def test_a_quick_machine_keeps_the_whole_limit() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    overload(limit, work_s=0.002, arrivals=6000, every_s=0.002 / 3)
    assert limit.limit == 64


def test_it_recovers_when_the_machine_does() -> None:
    limit = AdaptiveLimit(64, DEADLINE_S)
    overload(limit, work_s=0.05, arrivals=6000, every_s=0.05 / 3)
    assert limit.limit < 20
    overload(limit, work_s=0.002, arrivals=30_000, every_s=0.002 / 3)
    assert limit.limit == 64


def test_one_slow_answer_after_another_counts_once() -> None:
    limit = AdaptiveLimit(100, DEADLINE_S)
    for _ in range(50):
        limit.observe(took_s=0.8, in_flight=50, now=10.0)
    assert limit.limit == 90


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(0, 100), st.floats(0, 2)), max_size=100), st.integers(1, 64))
def test_it_stays_within_its_bounds(answers: list[tuple[float, int, float]], most: int) -> None:
    limit, now = AdaptiveLimit(most, DEADLINE_S), 0.0
    for took_s, in_flight, wait in answers:
        now += wait
        limit.observe(took_s, in_flight, now)
        assert min(2, most) <= limit.limit <= most
