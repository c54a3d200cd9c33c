"""From a question to fused candidates: encode, ask all channels at once, fuse what came in time.

The engine knows neither HTTP nor Ray: it is given one callable a stage, see `calls`, and works the same in both
topologies.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.fusion import Fused, Fusion, combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Question

T = TypeVar("T")
Encode = Callable[[Queries], Awaitable[dict[str, FloatArray]]]
Retrieve = Callable[[Queries, int], Awaitable[Candidates]]
OnlyPresent = Callable[[Mapping[str, Candidates]], dict[str, Candidates]]

ENCODER = "encoder"
_ENCODER_SHARE = 0.5  # so that channels that need no query vector still have time when the encoder is late
_CHANNEL_SHARE = 0.9  # the rest is for fusion and the answer

_log = logging.getLogger(__name__)


class DeadlinePassed(Exception):
    """Nothing that could be answered with came in time."""


class AllChannelsFailed(Exception):
    """Every channel failed."""


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


@dataclass
class Trace:
    """What happened on the way to one answer.

    Attributes:
        timings_ms: Stage or channel name to its milliseconds.
        late: Stages left out because their deadline passed.
        failed: Stages left out because they raised.
    """

    timings_ms: dict[str, float] = field(default_factory=dict)
    late: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def degraded(self) -> list[str]:
        """All that was left out."""
        return [*self.late, *self.failed]


class Engine:
    """The stages of one release.

    Args:
        encode: Queries to (B, D) query vectors by space.
        channels: Channel name to its retrieval.
        only_present: Takes from the lists what is no item (any more).
    """

    def __init__(self, encode: Encode, channels: Mapping[str, Retrieve], only_present: OnlyPresent = dict) -> None:
        self._encode = encode
        self._channels = dict(channels)
        self._only_present = only_present
        self._answered: set[str] = set()

    @property
    def channel_names(self) -> list[str]:
        """Names of all channels."""
        return list(self._channels)

    @property
    def not_ready(self) -> list[str]:
        """Stages that have not answered once since the start; later failures show in `degraded`, not here."""
        return [name for name in (ENCODER, *self._channels) if name not in self._answered]

    async def candidates(self, question: Question, fusion: Fusion, k: int, deadline: Deadline, trace: Trace) -> Fused:
        """The k best fused candidates; what is left out is noted in the trace.

        The same steps as `Retriever.recommend`, with every stage awaited within its share of the deadline.

        Args:
            question: The queries, and the channels that concern them.
            fusion: With a weight for each of those channels.
            k: How many.
            deadline: When the answer is due.
            trace: Filled in on the way.

        Raises:
            DeadlinePassed: When no channel answered in time.
            AllChannelsFailed: When no channel was late and all failed.
        """
        vectors = await self._stage(ENCODER, self._encode(question.queries), deadline.share(_ENCODER_SHARE), trace)
        encoded = question.queries.with_vectors(vectors or {})
        depth = max(k, fusion.depth)
        due = deadline.share(_CHANNEL_SHARE)
        stages = [self._stage(name, self._channels[name](encoded, depth), due, trace) for name in question.channels]
        found = zip(question.channels, await asyncio.gather(*stages), strict=True)
        lists = {name: candidates for name, candidates in found if candidates is not None}
        if not lists:
            raise DeadlinePassed if trace.late else AllChannelsFailed
        start = time.perf_counter()
        fused = combine(self._only_present(lists), fusion, k)
        trace.timings_ms["fusion"] = _ms_since(start)
        return fused

    async def _stage(self, name: str, call: Awaitable[T], deadline: Deadline, trace: Trace) -> T | None:
        """Await one stage within its deadline; None when it was late or failed."""
        start = time.perf_counter()
        try:
            async with asyncio.timeout(deadline.remaining_s):
                result = await call
        except TimeoutError:
            trace.late.append(name)
            return None
        except Exception:
            # Whatever is wrong with one stage, the others still answer; the caller sees the name in `degraded`.
            _log.exception("stage %s failed", name)
            trace.failed.append(name)
            return None
        finally:
            trace.timings_ms[name] = _ms_since(start)
        self._answered.add(name)
        return result


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 3)
