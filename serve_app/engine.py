"""From a question to fused candidates: encode, ask all channels at once, fuse what came in time.

The engine knows neither HTTP nor Ray: it is given one callable a stage, see `calls`, and works the same in both
topologies.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Source
from recsys_ray.retrieval.fusion import Fused, Fusion, combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Question
from serve_app.circuit import Circuit
from serve_app.config import Breaker
from serve_app.deadline import Deadline

T = TypeVar("T")
Encode = Callable[[Queries, float], Awaitable[dict[str, FloatArray]]]
Retrieve = Callable[[Queries, int, float], Awaitable[Candidates]]
"""The last argument of both is the time that the call has, in seconds."""
OnlyPresent = Callable[[Mapping[str, Candidates]], dict[str, Candidates]]
Observe = Callable[[Queries, tuple[str, ...]], None]

ENCODER = "encoder"
_ENCODER_SHARE = 0.5  # so that channels that need no query vector still have time when the encoder is late
_CHANNEL_SHARE = 0.9  # the rest is for fusion and the answer

_BREAKER = Breaker()

_log = logging.getLogger(__name__)


class DeadlinePassed(Exception):
    """Nothing that could be answered with came in time."""


class AllChannelsFailed(Exception):
    """Every channel failed."""


@dataclass(frozen=True)
class Fallback:
    """The channel that answers when it is needed most: when others, or its own deployment, do not.

    It is called on the event loop, when no time may be left to wait for a thread, so it must be quick and wait for
    nothing: a channel that reads nothing of the question walks a sorted list.

    Attributes:
        name: Its name among the channels.
        retrieve: Its k best candidates, from this process.
    """

    name: str
    retrieve: Callable[[Queries, int], Candidates]


def fallback_name(setting: str | None, channels: Mapping[str, Source]) -> str | None:
    """The fallback among a release's channels, None where there is none.

    Raises:
        ConfigError: When a channel is named that the release does not have or that reads the question.
    """
    able = [name for name, channel in channels.items() if not channel.reads]
    if setting == "auto":
        return able[0] if able else None
    if setting is not None and setting not in able:
        allowed = ", ".join(["auto", *able, "null"])
        raise ConfigError("fallback", setting, allowed, "A fallback must be a channel that answers everybody alike.")
    return setting


@dataclass
class Trace:
    """What happened on the way to one answer.

    Attributes:
        timings_ms: Stage or channel name to its milliseconds.
        late: Stages left out because their deadline passed.
        failed: Stages left out because they raised, or had done so too often.
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
        breaker: When a stage that keeps failing is left out.
        fallback: Stands in for the channel of its name.
        observe: Is shown each question that was encoded, and the channels that were asked; it must be quick.
    """

    def __init__(
        self,
        encode: Encode,
        channels: Mapping[str, Retrieve],
        only_present: OnlyPresent = dict,
        breaker: Breaker = _BREAKER,
        fallback: Fallback | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._encode = encode
        self._channels = dict(channels)
        self._only_present = only_present
        self._fallback = fallback
        self._observe = observe
        self._circuits = {name: Circuit(breaker) for name in (ENCODER, *self._channels)}
        self._answered: set[str] = set()

    @property
    def channel_names(self) -> list[str]:
        """Names of all channels."""
        return list(self._channels)

    @property
    def circuits(self) -> Mapping[str, Circuit]:
        """Stage to its circuit."""
        return self._circuits

    @property
    def fallback_name(self) -> str | None:
        """The channel that is asked in this process when it did not answer."""
        return None if self._fallback is None else self._fallback.name

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
        vectors = await self._stage(
            ENCODER, partial(self._encode, question.queries), deadline.share(_ENCODER_SHARE), trace
        )
        encoded = question.queries.with_vectors(vectors or {})
        depth = max(k, fusion.depth)
        due = deadline.share(_CHANNEL_SHARE)
        stages = [
            self._stage(name, partial(self._channels[name], encoded, depth), due, trace) for name in question.channels
        ]
        found = zip(question.channels, await asyncio.gather(*stages), strict=True)
        lists = {name: candidates for name, candidates in found if candidates is not None}
        self._fall_back(question, depth, lists)
        if not lists:
            raise DeadlinePassed if trace.late else AllChannelsFailed
        start = time.perf_counter()
        fused = combine(self._only_present(lists), fusion, k)
        trace.timings_ms["fusion"] = _ms_since(start)
        if self._observe is not None and vectors is not None:
            self._observe(encoded, question.channels)
        return fused

    async def _stage(
        self, name: str, call: Callable[[float], Awaitable[T]], deadline: Deadline, trace: Trace
    ) -> T | None:
        """Await one stage within its deadline; None when it was late, failed, or its circuit is open."""
        timeout_s = deadline.remaining_s
        if timeout_s <= 0:
            trace.late.append(name)
            return None
        circuit = self._circuits[name]
        ticket = circuit.enter(time.monotonic())
        if ticket is None:
            trace.failed.append(name)
            return None
        start = time.perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                result = await call(timeout_s)
        except TimeoutError:
            trace.late.append(name)
            circuit.late(ticket, timeout_s, time.monotonic())
            return None
        except Exception:
            # Whatever is wrong with one stage, the others still answer; the caller sees the name in `degraded`.
            _log.exception("stage %s failed", name)
            trace.failed.append(name)
            circuit.leave(ticket, False, time.monotonic())
            return None
        finally:
            trace.timings_ms[name] = _ms_since(start)
        circuit.leave(ticket, True, time.monotonic())
        self._answered.add(name)
        return result

    def _fall_back(self, question: Question, depth: int, lists: dict[str, Candidates]) -> None:
        """Add the list of the fallback channel where the question concerns it and it did not answer by itself."""
        fallback = self._fallback
        if fallback is None or fallback.name in lists or fallback.name not in question.channels:
            return
        try:
            lists[fallback.name] = fallback.retrieve(question.queries, depth)
        except Exception:  # as in `_stage`, which has named it
            _log.exception("fallback %s failed", fallback.name)


def _ms_since(start: float) -> float:
    return round((time.perf_counter() - start) * 1e3, 3)
