"""What runs in replicas: plain classes, decorated by nothing; `app.build_app` turns them into deployments."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from fastapi import FastAPI

from recsys_ray.core.arrays import FloatArray
from recsys_ray.index.shard import Shard
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.releases import Releases
from serve_app.admin import Admin
from serve_app.config import ServeConfig
from serve_app.histories import Histories
from serve_app.items import Items
from serve_app.keys import read_key
from serve_app.live import open_stores
from serve_app.live_recall import LiveRecall
from serve_app.opening import Opener, first_release, followed_folder
from serve_app.routes import create_api
from serve_app.service import Service
from serve_app.shelf import Shelf
from serve_app.stages import Workers, load_encoding, load_retrieving
from serve_app.swap import Swap

# Stages in threads let go of the interpreter at every step and wait this long for it each time while the event loop is
# busy. An int8 encoder beside a loop that never pauses: 238 to 270 texts a second at half a millisecond, 369 at this,
# 563 alone; the application with eight clients 252 and 300 answers a second. Python's default is 5 ms.
_SWITCH_S = 0.0001


class Encoder:
    """The query encoders: histories and texts to query vectors, by whichever release the caller answers with.

    Args:
        config: The application's settings.
    """

    def __init__(self, config: ServeConfig) -> None:
        self._held = Shelf(partial(load_encoding, config), first_release(config))

    async def encode(self, release: str, queries: Queries, timeout_s: float) -> dict[str, FloatArray]:
        """Query vectors by space, (B, D) each; TimeoutError where the work could not begin in time."""
        encode = await self._held.get(release)
        return await encode(queries, timeout_s)

    async def prepare(self, release: str) -> None:
        """Load the release of a directory, so that the first question does not have to wait for that."""
        await self._held.prepare(release)


class ChannelWorker:
    """One channel, or one shard of it, of whichever release the caller answers with.

    Args:
        config: The application's settings.
        name: The channel's name.
        shard: The part of the channel that is held here; None: all of it.
    """

    def __init__(self, config: ServeConfig, name: str, shard: Shard | None = None) -> None:
        self._held = Shelf(partial(load_retrieving, config, name, shard), first_release(config))

    async def retrieve(self, release: str, queries: Queries, k: int, timeout_s: float) -> Candidates:
        """The channel's k best candidates of each query; TimeoutError where the work could not begin in time."""
        retrieve = await self._held.get(release)
        return await retrieve(queries, k, timeout_s)

    async def prepare(self, release: str) -> None:
        """As `Encoder.prepare`."""
        await self._held.prepare(release)


class Gateway:
    """The HTTP ingress. Without handles it holds all stages itself (collapsed); with handles it calls them (composed).

    Args:
        config: The application's settings.
        encoder: Handle of the `Encoder` deployment, None when collapsed.
        channels: Channel name to the handles of its `ChannelWorker` deployments, one a shard; None when collapsed.
    """

    def __init__(
        self, config: ServeConfig, encoder: Any | None = None, channels: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        sys.setswitchinterval(_SWITCH_S)
        workers = None
        if encoder is not None and channels is not None:
            workers = Workers(encoder, channels, asyncio.get_running_loop())
        path, folder = first_release(config), followed_folder(config)
        stores = open_stores(config.live, path)
        recall = LiveRecall(config.recall)
        opener = Opener(config, stores.items, workers, recall.offer)
        first = opener.open(path)
        opener.remember(first)
        self.swap = swap = Swap(first, folder, opener.take_over)
        limits = config.limits
        histories = Histories(stores.histories, limits.retry_after_s, config.breaker)
        items = Items(lambda: swap.current.live, stores.items, limits.retry_after_s)
        write_key, admin_key = read_key("keys.write", config.keys.write), read_key("keys.admin", config.keys.admin)
        admin = None if admin_key is None or folder is None else Admin(Releases(folder), admin_key)
        self._api = create_api(Service(swap, histories, recall, config), items, limits, write_key, admin)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name by which Ray Serve asks for the application
        return self._api
