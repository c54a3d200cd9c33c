"""What a request's headers say of its time."""

from collections.abc import Iterable

from serve_app.config import Limits
from serve_app.problems import Problem

DEADLINE_HEADER = "X-Deadline-Ms"
STARTED_HEADER = "X-Request-Start"
_STARTED_UNITS = ((1e14, 1e-6), (1e11, 1e-3), (0.0, 1.0))  # from this value on a time since 1970 is in these seconds


def sent_deadline_ms(value: str | None, limits: Limits) -> int | None:
    """The deadline of the header `X-Deadline-Ms`, None where it was not sent.

    Raises:
        Problem: 422 it is no whole number between 1 and `limits.max_deadline_ms`.
    """
    if value is None:
        return None
    most = limits.max_deadline_ms
    if not (value.isascii() and value.isdigit() and len(value) <= len(str(most)) and 1 <= int(value) <= most):
        detail = f"got {value[:32]!r}; a whole number from 1 to {most} is allowed"
        raise Problem(422, f"{DEADLINE_HEADER}: {detail}.", [{"field": DEADLINE_HEADER, "detail": detail}])
    return int(value)


def waited_s(headers: Iterable[tuple[bytes, bytes]], now: float, most_s: float) -> float:
    """Seconds that a request has waited before this process saw it, where a proxy in front says when it came.

    Args:
        headers: `X-Request-Start: t=…` in seconds, milliseconds or microseconds since 1970, as nginx and others write.
        now: Seconds since 1970.
        most_s: Longer waits are not believed: clocks differ, and anybody may send the header.
    """
    name = STARTED_HEADER.lower().encode()
    for key, value in headers:
        if key == name:
            try:
                started = float(value.removeprefix(b"t="))
            except ValueError:
                return 0.0
            unit_s = next((unit for least, unit in _STARTED_UNITS if started >= least), 1.0)
            waited = now - started * unit_s
            return waited if 0 < waited <= most_s else 0.0
    return 0.0
