"""A circuit breaker (Nygard, Release It!, 2007): a stage that keeps failing is left alone for a while.

A function of what is reported and of the time that is passed in; it knows no clock.
"""

from typing import Literal

from serve_app.config import Breaker

State = Literal["closed", "open", "half_open"]


class Circuit:
    """Closed while all is well; open after so many failures in a row; half open while one call tries it again.

    A call asks with `enter` and reports with `leave`. Calls that entered before the state changed are not heard any
    more, so that what was long under way when a circuit opened neither closes it nor lengthens its pause.

    Args:
        settings: When it opens and for how long.
    """

    def __init__(self, settings: Breaker) -> None:
        self._settings = settings
        self._state: State = "closed"
        self._failures = 0
        self._pause_s = settings.pause_s
        self._next_try = 0.0
        self._generation = 0

    @property
    def state(self) -> State:
        """As it is."""
        return self._state

    @property
    def failures(self) -> int:
        """In a row, up to now."""
        return self._failures

    def enter(self, now: float) -> int | None:
        """A ticket for one call, None when there must be none.

        Args:
            now: Seconds on a clock that never goes back.
        """
        if self._state == "closed":
            return self._generation
        if now < self._next_try:
            return None
        self._state = "half_open"
        self._generation += 1
        self._next_try = now + self._pause_s  # a try that never reports is followed by another
        return self._generation

    def leave(self, ticket: int, succeeded: bool, now: float) -> None:
        """What came of a call; one that says nothing of the stage (cancelled, hardly any time) reports nothing."""
        if ticket != self._generation:
            return
        if succeeded:
            self._state, self._failures, self._pause_s = "closed", 0, self._settings.pause_s
            return
        self._failures += 1
        if self._state == "half_open":
            self._pause_s = min(2 * self._pause_s, self._settings.max_pause_s)
        elif self._failures < self._settings.failures:
            return
        self._state = "open"
        self._generation += 1
        self._next_try = now + self._pause_s

    def late(self, ticket: int, timeout_s: float, now: float) -> None:
        """A call that did not answer within the time it was given: a failure, if that was time enough."""
        if timeout_s * 1e3 >= self._settings.min_timeout_ms:
            self.leave(ticket, False, now)
