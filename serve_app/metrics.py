"""Counters of one gateway replica, in the Prometheus text format."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping

_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)

ReadEach = Callable[[], Mapping[tuple[str, ...], float]]
"""The values of the labels to the value that is shown for them."""


class Metrics:
    """Requests by route and status, their duration, and stages left out of answers.

    Behind a proxy each scrape reaches one of the replicas; label and sum over replicas where there are several.
    """

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, int]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._within: Counter[tuple[str, float]] = Counter()
        self._degraded: Counter[str] = Counter()
        self._gauges: dict[str, Callable[[], float]] = {}
        self._labelled: dict[str, tuple[tuple[str, ...], ReadEach]] = {}

    def watch(self, name: str, read: Callable[[], float]) -> None:
        """Show a value as it is when the metrics are read."""
        self._gauges[name] = read

    def watch_each(self, name: str, labels: tuple[str, ...], read: ReadEach) -> None:
        """Show a value for each value of the labels, as they are when the metrics are read."""
        self._labelled[name] = labels, read

    def read(self, name: str) -> float:
        """A value that is watched, as it is now."""
        return self._gauges[name]()

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self._requests[route, status] += 1
        self._seconds[route] += seconds
        for bound in _BUCKETS_S:
            if seconds <= bound:
                self._within[route, bound] += 1
                break

    def observe_degraded(self, stages: list[str]) -> None:
        """Count the stages that one answer had to do without."""
        self._degraded.update(stages)

    def text(self) -> str:
        """The exposition, ``text/plain; version=0.0.4``."""
        lines = ["# TYPE recsys_requests_total counter"]
        lines += [
            f'recsys_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self._requests.items())
        ]
        lines.append("# TYPE recsys_request_seconds histogram")
        for route in sorted(self._seconds):
            lines += self._histogram(route)
        lines.append("# TYPE recsys_degraded_total counter")
        lines += [f'recsys_degraded_total{{stage="{name}"}} {count}' for name, count in sorted(self._degraded.items())]
        for name, read in self._gauges.items():
            lines += [f"# TYPE {name} gauge", f"{name} {read():.6f}"]
        for name, (labels, read_each) in self._labelled.items():
            lines.append(f"# TYPE {name} gauge")
            for values, value in read_each().items():
                pairs = ",".join(f'{label}="{one}"' for label, one in zip(labels, values, strict=True))
                lines.append(f"{name}{{{pairs}}} {value:.6f}")
        return "\n".join(lines) + "\n"

    def _histogram(self, route: str) -> list[str]:
        total = sum(count for (name, _), count in self._requests.items() if name == route)
        lines = []
        below = 0
        for bound in _BUCKETS_S:
            below += self._within[route, bound]
            lines.append(f'recsys_request_seconds_bucket{{route="{route}",le="{bound}"}} {below}')
        lines.append(f'recsys_request_seconds_bucket{{route="{route}",le="+Inf"}} {total}')
        lines.append(f'recsys_request_seconds_sum{{route="{route}"}} {self._seconds[route]:.6f}')
        lines.append(f'recsys_request_seconds_count{{route="{route}"}} {total}')
        return lines
