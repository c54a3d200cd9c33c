"""The circuit breaker's laws, on a clock of the test's own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.circuit import Circuit
from serve_app.config import Breaker

SETTINGS = Breaker(failures=3, pause_s=1.0, max_pause_s=5.0, min_timeout_ms=100)


def fail(circuit: Circuit, now: float, times: int = 1) -> None:
    for _ in range(times):
        ticket = circuit.enter(now)
        assert ticket is not None
        circuit.leave(ticket, False, now)


def test_it_opens_after_so_many_failures_in_a_row_and_not_before() -> None:
    circuit = Circuit(SETTINGS)
    fail(circuit, 0.0, 2)
    ticket = circuit.enter(0.0)
    assert ticket is not None
    circuit.leave(ticket, True, 0.0)
    fail(circuit, 0.0, 2)
    assert circuit.state == "closed"
    fail(circuit, 0.0)
    assert circuit.state == "open"
    assert circuit.enter(0.99) is None


def test_one_call_tries_it_again_and_closes_it() -> None:
    circuit = Circuit(SETTINGS)
    fail(circuit, 0.0, 3)
    ticket = circuit.enter(1.0)
    assert ticket is not None
    assert circuit.state == "half_open"
    assert circuit.enter(1.5) is None
    circuit.leave(ticket, True, 1.6)
    assert circuit.state == "closed"
    fail(circuit, 1.7, 2)
    assert circuit.state == "closed"


def test_the_pause_grows_with_each_failed_try_up_to_its_bound_and_starts_anew() -> None:
    circuit = Circuit(SETTINGS)
    fail(circuit, 0.0, 3)
    now = 0.0
    for pause in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert circuit.enter(now + pause - 0.01) is None
        now += pause
        fail(circuit, now)
    ticket = circuit.enter(now + 5.0)
    assert ticket is not None
    circuit.leave(ticket, True, now + 5.0)
    fail(circuit, now + 6.0, 3)
    assert circuit.enter(now + 7.0) is not None


def test_a_try_that_never_reports_is_followed_by_another() -> None:
    circuit = Circuit(SETTINGS)
    fail(circuit, 0.0, 3)
    lost = circuit.enter(1.0)
    again = circuit.enter(2.0)
    assert lost is not None
    assert again is not None
    circuit.leave(lost, False, 2.1)
    assert circuit.state == "half_open"
    circuit.leave(again, True, 2.2)
    assert circuit.state == "closed"


@pytest.mark.parametrize("succeeded", [True, False])
def test_what_was_under_way_when_it_opened_changes_nothing(succeeded: bool) -> None:
    circuit = Circuit(SETTINGS)
    slow = circuit.enter(0.0)
    assert slow is not None
    fail(circuit, 0.0, 3)
    circuit.leave(slow, succeeded, 0.9)
    assert circuit.state == "open"
    assert circuit.enter(0.95) is None
    assert circuit.enter(1.0) is not None


def test_too_little_time_is_no_failure() -> None:
    circuit = Circuit(SETTINGS)
    for timeout_s in (0.099, 0.1):
        for _ in range(3):
            ticket = circuit.enter(0.0)
            assert ticket is not None
            circuit.late(ticket, timeout_s, 0.0)
        assert circuit.state == ("closed" if timeout_s < 0.1 else "open")


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.sampled_from(["ok", "fails", "never reports"])), max_size=60))
def test_whatever_happens_it_lets_calls_through_again_within_the_longest_pause(
    calls: list[tuple[float, str]],
) -> None:
    circuit, now = Circuit(SETTINGS), 0.0
    for wait, outcome in calls:
        now += wait
        ticket = circuit.enter(now)
        if ticket is not None and outcome != "never reports":
            circuit.leave(ticket, outcome == "ok", now)
    ticket = circuit.enter(now + SETTINGS.max_pause_s)
    assert ticket is not None
    circuit.leave(ticket, True, now + SETTINGS.max_pause_s)
    assert circuit.state == "closed"
