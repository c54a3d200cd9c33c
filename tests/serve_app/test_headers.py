"""What headers say of a request's time."""

import pytest

from serve_app.config import Limits
from serve_app.headers import sent_deadline_ms, waited_s
from serve_app.problems import Problem

LIMITS = Limits(max_deadline_ms=5000)
NOW = 1_800_000_000.0


def test_a_deadline_in_the_header() -> None:
    assert sent_deadline_ms(None, LIMITS) is None
    assert sent_deadline_ms("250", LIMITS) == 250


@pytest.mark.parametrize("wrong", ["0", "5001", "", "1.5", "-1", "soon", "²", "9" * 5000])
def test_a_wrong_one_is_named(wrong: str) -> None:
    with pytest.raises(Problem, match="X-Deadline-Ms") as raised:
        sent_deadline_ms(wrong, LIMITS)
    assert raised.value.status == 422


@pytest.mark.parametrize("text", ["t=1799999999.5", "1799999999.5", "t=1799999999500", "t=1799999999500000"])
def test_waiting_in_front_counts_in_every_unit_that_proxies_write(text: str) -> None:
    assert waited_s([(b"x-request-start", text.encode())], NOW, 5.0) == pytest.approx(0.5)


@pytest.mark.parametrize("text", ["t=1799999000", "t=1800000001", "t=", "t=nan", "t=inf", "-1", "yesterday"])
def test_what_cannot_be_is_not_believed(text: str) -> None:
    assert waited_s([(b"x-request-start", text.encode())], NOW, 5.0) == 0.0
    assert waited_s([], NOW, 5.0) == 0.0
