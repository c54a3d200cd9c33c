"""How many requests to take on at a time: as many as are answered well within their deadline.

A function of what is reported and of the time that is passed in; it knows no clock.
"""

_TARGET_SHARE = 0.25  # of the deadline: half of what the slowest stage may take, since work is uneven
_LEAST = 8  # so that a few clients who come at the same moment are never turned away
_REMEMBERED = 50  # answers


class AdaptiveLimit:
    """The limit is the number of requests that are worked off within a quarter of the deadline at the present pace.

    The pace is the time with work per answer, a running mean: one that would come on top of `limit` others had to
    expect an answer later than that (Little's law), so it is better told at once. Work that is spread over threads or
    other machines makes the pace quicker and the limit higher. At the start the pace is taken to be quick, so that the
    first answers, which are slow, turn nobody away.

    Args:
        most: It never goes higher.
        deadline_s: The deadline of requests that set none. Others' deadlines do not count: whoever asks for an answer
            within a millisecond would lower the limit for everybody.
    """

    def __init__(self, most: int, deadline_s: float) -> None:
        self._most = most
        self._target_s = _TARGET_SHARE * deadline_s
        self._pace_s = 0.0
        self._since = 0.0
        self.in_flight = 0

    @property
    def limit(self) -> int:
        """Requests at a time."""
        if self._target_s >= self._most * self._pace_s:
            return self._most
        return min(self._most, max(_LEAST, int(self._target_s / self._pace_s)))

    def begin(self, now: float) -> None:
        """One request is taken on.

        Args:
            now: Seconds on a clock that never goes back.
        """
        if self.in_flight == 0:
            self._since = now
        self.in_flight += 1

    def end(self, now: float) -> None:
        """One is answered."""
        self.in_flight -= 1
        self._pace_s += (now - self._since - self._pace_s) / _REMEMBERED
        self._since = now
