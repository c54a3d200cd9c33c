"""What runs in replicas: plain classes, decorated by nothing; `app.build_app` turns them into deployments."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import load_release, load_release_channel, open_release
from serve_app.calls import across, in_process
from serve_app.config import ServeConfig
from serve_app.engine import Encode, Engine, Fallback, Retrieve, fallback_name
from serve_app.histories import Histories
from serve_app.items import Items
from serve_app.live import LiveRelease, open_live, open_stores
from serve_app.routes import create_api
from serve_app.service import Service


class Encoder:
    """The query encoders of a release: histories and texts to query vectors.

    Args:
        served: The application's settings, or the release itself where this process holds it already.
    """

    def __init__(self, served: ServeConfig | LiveRelease) -> None:
        live = open_live(served) if isinstance(served, ServeConfig) else served
        # Backbones load with the first text: here, not in a request.
        live.current.retriever.encode(Queries.of_texts(("warm up",)))

        def encode(queries: Queries) -> Queries:
            return live.current.retriever.encode(live.known(queries))

        self._encode = in_process(encode)

    async def encode(self, queries: Queries, timeout_s: float) -> dict[str, FloatArray]:
        """Query vectors by space, (B, D) each; TimeoutError where the work could not begin in time."""
        return (await self._encode(timeout_s, queries)).vectors


class ChannelWorker:
    """One channel of a release.

    Args:
        served: As for `Encoder`.
        name: The channel's name.
    """

    def __init__(self, served: ServeConfig | LiveRelease, name: str) -> None:
        self._retrieve = in_process(_retrieving(served, name))

    async def retrieve(self, queries: Queries, k: int, timeout_s: float) -> Candidates:
        """The channel's k best candidates of each query; TimeoutError where the work could not begin in time."""
        return await self._retrieve(timeout_s, queries, k)


class Gateway:
    """The HTTP ingress. Without handles it holds all stages itself (collapsed); with handles it calls them (composed).

    Args:
        config: The application's settings.
        encoder: Handle of the `Encoder` deployment, None when collapsed.
        channels: Channel name to the handle of its `ChannelWorker` deployment, None when collapsed.
    """

    def __init__(
        self, config: ServeConfig, encoder: Any | None = None, channels: Mapping[str, Any] | None = None
    ) -> None:
        release = load_release(config.release, config.text_encoder)
        stores = open_stores(config.live, release.artifact.path)
        live = LiveRelease(release, stores.items, config.live)
        encode: Encode
        retrieve: dict[str, Retrieve]
        if encoder is None or channels is None:
            encode = Encoder(live).encode
            retrieve = {name: ChannelWorker(live, name).retrieve for name in release.retriever.channels}
        else:
            encode = across(encoder.encode)
            retrieve = {name: across(handle.retrieve) for name, handle in channels.items()}
        engine = Engine(
            encode,
            retrieve,
            lambda lists: live.current.catalogue.only_present(lists),
            config.breaker,
            _fallback(live, config.fallback),
        )
        histories = Histories(stores.histories, config.limits.retry_after_s, config.breaker)
        service = Service(live, engine, histories, config)
        items = Items(live, stores.items, config.limits.retry_after_s)
        self._api = create_api(service, items, config.limits)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name by which Ray Serve asks for the application
        return self._api


def _fallback(live: LiveRelease, setting: str | None) -> Fallback | None:
    name = fallback_name(setting, live.current.retriever.channels)
    if name is None:
        return None

    def retrieve(queries: Queries, k: int) -> Candidates:
        return live.current.retriever.channels[name].retrieve(live.known(queries), k)

    return Fallback(name, retrieve)


def _retrieving(served: ServeConfig | LiveRelease, name: str) -> Callable[[Queries, int], Candidates]:
    if isinstance(served, ServeConfig) and served.live.store is None:
        # Nothing ever changes, so a replica needs no more than its own channel.
        return load_release_channel(open_release(served.release), name).retrieve
    live = open_live(served) if isinstance(served, ServeConfig) else served

    def retrieve(queries: Queries, k: int) -> Candidates:
        return live.current.retriever.channels[name].retrieve(live.known(queries), k)

    return retrieve
