"""What a search costs in each of the ways it can go, measured, so that each search takes the cheapest.

Which way is cheapest turns on the ratio of memory to arithmetic of the machine, the length of the vectors and the size
of the batch. Two numbers a way, measured where the index is built in a fraction of a second, say it within some ten
percent; near the point where two ways cost the same it does not matter which is taken.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

_ROUNDS = 3


@dataclass(frozen=True)
class Cost:
    """Time that grows in proportion.

    Attributes:
        once_ns: Nanoseconds a unit of work, whatever the number of queries.
        each_ns: Nanoseconds a unit and query.
    """

    once_ns: float
    each_ns: float

    def ns(self, units: int, queries: int) -> float:
        """Nanoseconds of so many units of work for so many queries."""
        return units * (self.once_ns + queries * self.each_ns)


@dataclass(frozen=True)
class Costs:
    """The exact ways, a unit being a row of vectors.

    Attributes:
        picked: Each allowed row where it lies, a query at a time.
        gathered: Allowed rows copied side by side, then one matrix product.
        scanned: One matrix product over all rows, whether allowed or not.
    """

    picked: Cost
    gathered: Cost
    scanned: Cost

    @classmethod
    def typical(cls, dim: int) -> Self:
        """For `dim` numbers a vector, where nothing was measured: ratios seen on a server core of 2024."""
        return cls(Cost(0.0, 0.15 * dim), Cost(0.4 * dim, 0.03 * dim), Cost(0.12 * dim, 0.03 * dim))

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Self:
        """From what `asdict` made of it.

        Raises:
            TypeError, KeyError: When it is something else.
        """
        return cls(Cost(**document["picked"]), Cost(**document["gathered"]), Cost(**document["scanned"]))

    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def fitted(run: Callable[[int], object], units: int, queries: int) -> Cost:
    """The cost through two measurements: `run(1)` and `run(queries)`, each so many queries over `units` of work."""
    one, many = fastest_ns(lambda: run(1)), fastest_ns(lambda: run(queries))
    each = max(many - one, 0.0) / (queries - 1)
    return Cost(max(one - each, 0.0) / units, each / units)


def fastest_ns(run: Callable[[], object]) -> float:
    """Nanoseconds of the fastest of three runs: what else the machine does only adds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - started)
    return float(min(times))
