"""The stages of a release: what the engine calls, from a release in this process or across to deployments."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError, RayTaskError

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import RecsysError
from recsys_ray.index.shard import Shard
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import (
    load_release,
    load_release_channel,
    open_release,
)
from recsys_ray.retrieval.sharded import load_shard, load_shard_release, merge_shards
from serve_app.calls import across, in_process
from serve_app.config import ServeConfig
from serve_app.engine import Encode, Retrieve
from serve_app.live import LiveRelease, open_live

_PREPARED_WITHIN_S = 600.0


@dataclass(frozen=True)
class Stages:
    """The callables of one release."""

    encode: Encode
    channels: Mapping[str, Retrieve]


def stages_here(live: LiveRelease) -> Stages:
    """All of them in this process."""
    return Stages(encoding(live), {name: retrieving(live, name) for name in live.current.retriever.channels})


def encoding(live: LiveRelease) -> Encode:
    """Query vectors by space, (B, D) each."""
    # Backbones load with the first text: here, not in a request.
    live.current.retriever.encode(Queries.of_texts(("warm up",)))

    def encode(queries: Queries) -> Queries:
        return live.current.retriever.encode(live.known(queries))

    call = in_process(encode)

    async def vectors(queries: Queries, timeout_s: float) -> dict[str, FloatArray]:
        return (await call(timeout_s, queries)).vectors

    return vectors


def retrieving(live: LiveRelease, name: str) -> Retrieve:
    """A channel's k best candidates of each query."""

    def retrieve(queries: Queries, k: int) -> Candidates:
        return live.current.retriever.channels[name].retrieve(live.known(queries), k)

    return _timed(retrieve)


def load_encoding(config: ServeConfig, release: Path) -> Encode:
    """As `encoding`, for a replica that holds nothing else."""
    return encoding(open_live(config, load_release(release, config.text_encoder, config.sharded)))


def load_retrieving(config: ServeConfig, name: str, shard: Shard | None, release: Path) -> Retrieve:
    """As `retrieving`, for a replica that holds nothing else, or only one shard of that."""
    if config.live.store is not None:
        if shard is None:
            held = load_release(release, config.text_encoder, config.sharded)
        else:
            held = load_shard_release(release, name, shard, config.text_encoder)
        return retrieving(open_live(config, held), name)
    # Nothing ever changes, so a replica needs no more than its own channel.
    opened = open_release(release)
    if shard is None:
        return _timed(load_release_channel(opened, name).retrieve)
    return _timed(load_shard(opened, name, shard).retrieve)


def together(shards: Sequence[Retrieve]) -> Retrieve:
    """A channel from its shards, which are asked at the same time.

    One that is late or fails makes the whole channel late or failed: a list without its items would look complete.
    """
    if len(shards) == 1:
        return shards[0]

    async def candidates(queries: Queries, k: int, timeout_s: float) -> Candidates:
        asked = [asyncio.ensure_future(shard(queries, k, timeout_s)) for shard in shards]
        try:
            return merge_shards(await asyncio.gather(*asked), k)
        finally:
            for one in asked:  # nobody waits for the others any more where one has failed
                one.cancel()

    return candidates


def _timed(retrieve: Callable[[Queries, int], Candidates]) -> Retrieve:
    call = in_process(retrieve)

    async def candidates(queries: Queries, k: int, timeout_s: float) -> Candidates:
        return await call(timeout_s, queries, k)

    return candidates


class Workers:
    """The deployments of the composed topology, as the gateway calls them.

    Every call names the release that the answer is made from, so that no answer mixes two, whatever a worker holds.

    Args:
        encoder: Handle of the `Encoder` deployment.
        channels: Channel name to the handles of its `ChannelWorker` deployments, one a shard.
        loop: The event loop that answers; handles are used on no other.
    """

    def __init__(self, encoder: Any, channels: Mapping[str, Sequence[Any]], loop: asyncio.AbstractEventLoop) -> None:
        self._encoder = encoder
        self._channels = dict(channels)
        self._loop = loop

    @property
    def channels(self) -> list[str]:
        """The channels that there are deployments for."""
        return list(self._channels)

    def stages(self, live: LiveRelease) -> Stages:
        """The stages of a release, across."""
        path = str(live.current.artifact.path)
        channels = {
            name: together([partial(across(shard.retrieve), path) for shard in self._channels[name]])
            for name in live.current.retriever.channels
        }
        return Stages(partial(across(self._encoder.encode), path), channels)

    def prepare(self, release: Path, channels: list[str]) -> None:
        """Have every replica of the deployments load a release; from a thread that is not the loop's.

        Raises:
            RecsysError: When one cannot. A replica that dies is no reason: its successor loads what is active.
        """
        self.run(self._prepare(str(release), channels))

    def run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine on the loop that answers, and wait for it."""
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _prepare(self, release: str, channels: list[str]) -> None:
        handles = [self._encoder, *(shard for name in channels for shard in self._channels[name])]
        answers = [
            handle.broadcast("prepare", release).results_async(timeout_s=_PREPARED_WITHIN_S, return_exceptions=True)
            for handle in handles
        ]
        for answer in await asyncio.gather(*answers):
            for error in answer:
                if isinstance(error, Exception):
                    _require_alive(error)


def _require_alive(error: Exception) -> None:
    cause = error.cause if isinstance(error, RayTaskError) else error
    if isinstance(cause, RayActorError):
        return
    if isinstance(cause, RecsysError):
        raise cause
    raise error
