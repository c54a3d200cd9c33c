"""How many requests to take on at a time: as many as are answered well within their deadline.

A function of what is reported and of the time that is passed in; it knows no clock.
"""

_TARGET_SHARE = 0.5  # of the deadline; the rest is for what waits in front of this process, and for uneven work
_DECREASE = 0.9
_LEAST = 2


class AdaptiveLimit:
    """Additive increase, multiplicative decrease (Chiu and Jain, 1989) on the time that answers take.

    More at a time than the machine works on makes every answer late and none more of them, so the limit goes down by
    a tenth when an answer took longer than half of the deadline, once for as long as it took: what was under way
    before cannot know of it. It goes up by one for every limit's worth of answers that took less, where it was used.

    Args:
        most: It never goes higher.
        deadline_s: The deadline of requests that set none. Others' deadlines do not count: whoever asks for an answer
            within a millisecond would lower the limit for everybody.
    """

    def __init__(self, most: int, deadline_s: float) -> None:
        self._most = float(most)
        self._least = float(min(most, _LEAST))
        self._target_s = _TARGET_SHARE * deadline_s
        self._limit = self._most
        self._next_decrease = 0.0

    @property
    def limit(self) -> int:
        """Requests at a time."""
        return int(self._limit)

    def observe(self, took_s: float, in_flight: int, now: float) -> None:
        """Count one answer.

        Args:
            took_s: How long it took.
            in_flight: How many were under way with it.
            now: Seconds on a clock that never goes back.
        """
        if took_s > self._target_s:
            if now >= self._next_decrease:
                self._limit = max(self._least, self._limit * _DECREASE)
                self._next_decrease = now + took_s
        elif 2 * in_flight >= self._limit:
            self._limit = min(self._most, self._limit + 1 / self._limit)
