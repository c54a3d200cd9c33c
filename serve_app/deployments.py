"""What runs in replicas: plain classes, decorated by nothing; `app.build_app` turns them into deployments."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release, load_release, load_release_channel, open_release
from serve_app.calls import across, in_process
from serve_app.config import ServeConfig
from serve_app.engine import Encode, Engine, Retrieve
from serve_app.routes import create_api
from serve_app.service import Service


class Encoder:
    """The query encoders of a release: histories and texts to query vectors.

    Args:
        release: Directory of the release, or the release itself where this process holds it already.
    """

    def __init__(self, release: str | Release) -> None:
        retriever = (load_release(release) if isinstance(release, str) else release).retriever
        retriever.encode(Queries.of_texts(("warm up",)))  # backbones load with the first text: here, not in a request
        self._encode = in_process(retriever.encode)

    async def encode(self, queries: Queries) -> dict[str, FloatArray]:
        """Query vectors by space, (B, D) each."""
        return (await self._encode(queries)).vectors


class ChannelWorker:
    """One channel of a release.

    Args:
        release: As for `Encoder`.
        name: The channel's name.
    """

    def __init__(self, release: str | Release, name: str) -> None:
        if isinstance(release, str):
            channel = load_release_channel(open_release(release), name)
        else:
            channel = release.retriever.channels[name]
        self._retrieve = in_process(channel.retrieve)

    async def retrieve(self, queries: Queries, k: int) -> Candidates:
        """The channel's k best candidates of each query."""
        return await self._retrieve(queries, k)


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
        release = load_release(config.release)
        encode: Encode
        retrieve: dict[str, Retrieve]
        if encoder is None or channels is None:
            encode = Encoder(release).encode
            retrieve = {name: ChannelWorker(release, name).retrieve for name in release.retriever.channels}
        else:
            encode = across(encoder.encode)
            retrieve = {name: across(handle.retrieve) for name, handle in channels.items()}
        service = Service(release, Engine(encode, retrieve), config)
        self._api = create_api(service, config.limits)

    def __serve_build_asgi_app__(self) -> FastAPI:  # the name by which Ray Serve asks for the application
        return self._api
