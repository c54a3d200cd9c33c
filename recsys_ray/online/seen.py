"""What counts as seen: all that was met, or the events of a time and of some kinds."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from recsys_ray.core.errors import ConfigError

_DAY_US = 86_400_000_000
MAX_DAYS = 36_500


@dataclass(frozen=True)
class Seen:
    """The events whose items must not come back: those that fit both conditions.

    Attributes:
        kinds: Events of these kinds; None: of any.
        since_us: Events from this time on, in microseconds since 1970; None: of any time.
    """

    kinds: frozenset[str] | None = None
    since_us: int | None = None

    @classmethod
    def within(cls, days: float | None = None, kinds: Iterable[str] | None = None, now_us: int | None = None) -> "Seen":
        """The events of the last days, and of some kinds.

        Args:
            days: How far back, e.g. 30; None: any time.
            kinds: Which; None: any.
            now_us: Microseconds since 1970 that the days are counted back from; None: the present.

        Raises:
            ConfigError: When neither is given, no kind is named, or the days are not within a century.
        """
        named = None if kinds is None else frozenset(kinds)
        if (days is None and named is None) or named == frozenset():
            raise ConfigError("exclude_seen", "no condition", "within_days, kinds or both; or true or false")
        if days is not None and not 0 < days <= MAX_DAYS:
            raise ConfigError("exclude_seen.within_days", days, f"more than 0, at most {MAX_DAYS}")
        now_us = time.time_ns() // 1000 if now_us is None else now_us
        return cls(named, None if days is None else now_us - round(days * _DAY_US))


ExcludeSeen = bool | Seen
"""Whether items that were seen are left out; `Seen`: those of some events."""
