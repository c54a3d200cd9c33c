"""When an answer is due."""

import time


class Deadline:
    """A point in time that a request must be answered by."""

    def __init__(self, timeout_s: float) -> None:
        self._end = time.monotonic() + timeout_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, negative once it has passed."""
        return self._end - time.monotonic()

    def share(self, share: float) -> "Deadline":
        """A nearer deadline, a share of what is left."""
        return Deadline(self.remaining_s * share)
