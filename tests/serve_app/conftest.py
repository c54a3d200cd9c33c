"""One small release for all tests of the room, the application over it in process, and both topologies for real."""

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastapi.dependencies.models
import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from fastapi import FastAPI

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.data.dataset import Dataset, load_dataset, prepare
from recsys_ray.data.split import SplitConfig
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.two_tower import build, save_towers
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import Release, ReleaseParts, load_release, write_release
from serve_app.config import Limits, Live, ServeConfig
from serve_app.deployments import Gateway
from tests.serve_app.swapping import BROKEN, ONE, OTHER, broken_copy

NEWCOMER = "newcomer"  # a user the release knows, without a history
_FOLLOWING = {"release", "item-log", "compaction", "live-recall"}
_ENDS_WITHIN_S = 10.0
LIMITS = Limits(max_body_bytes=4096, max_k=100, max_history=50, max_text_chars=200)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True, scope="module")
def let_go() -> Iterator[None]:
    """End the threads of a module's applications, which FastAPI holds: it remembers the functions of all it saw.

    One that is in the middle of loading a release is waited for, that it does not do so during tests of other modules.
    """
    before = set(threading.enumerate())
    yield
    for remembered in vars(fastapi.dependencies.models).values():
        if hasattr(remembered, "cache_clear"):
            remembered.cache_clear()
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        if thread.name in _FOLLOWING:
            thread.join(_ENDS_WITHIN_S)


@pytest.fixture(scope="session")
def release_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of untrained towers with ids and attributes, co-visitation, TF-IDF and popularity over 120 items."""
    root = tmp_path_factory.mktemp("serving")
    store = ArtifactStore(root / "storage")
    data = make_synthetic(root / "raw", users=60, items=120, events_per_user=10)
    made = store.publish("dataset", "d", lambda folder: prepare(data, SplitConfig(), folder), {}, {})
    parts = _parts(load_dataset(made), root)
    return store.publish("release", "tiny", lambda folder: write_release(folder, parts), {}, {"dataset": made.id}).path


@pytest.fixture(scope="session")
def two_releases(release_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with that release, another one over 130 items with other towers, and a broken copy of that one."""
    root = tmp_path_factory.mktemp("releases")
    store = ArtifactStore(root / "storage")
    data = make_synthetic(root / "raw", users=60, items=130, events_per_user=12)
    made = store.publish("dataset", "d", lambda folder: prepare(data, SplitConfig(), folder), {}, {})
    parts = _parts(load_dataset(made), root, seed=1)
    path = store.publish("release", OTHER, lambda folder: write_release(folder, parts), {}, {"dataset": made.id}).path
    shutil.copytree(release_path, path.parent / ONE)
    broken_copy(path.parent, OTHER, BROKEN)
    return path.parent


def _parts(dataset: Dataset, root: Path, seed: int = 0) -> ReleaseParts:
    torch.manual_seed(seed)
    towers = root / "towers"
    towers.mkdir()
    config = TwoTowerConfig(dim=16, text=None, image=None, vectors=None)
    model = build(config, dataset.fields, len(dataset.item_ids), {}).eval()
    space = save_towers(towers, model, {})
    vectors = embed_items(model, build_item_inputs(dataset.items, dataset.fields, config, {}), 64)
    spaces = {"towers": Space(space, vectors, vectors[:20])}
    fit = FitData(dataset.events, dataset.items, dataset.fields, spaces, None, IndexConfig(factory="exact"))
    configs = {
        "nearest": NearestConfig(),
        "co_visitation": CoVisitationConfig(),
        "content": ContentConfig(),
        "popularity": PopularityConfig(),
    }
    channels = tuple(fit_channel(name, one, fit) for name, one in configs.items())
    histories = root / "histories.parquet"
    users = [*dataset.user_ids.ids, NEWCOMER]
    events = dataset.events.histories
    with_newcomer = Ragged(events.values, np.append(events.offsets, events.offsets[-1]))
    kinds = pa.array([("view", "view", "purchase")[place % 3] for place in range(len(dataset.events))])
    times_us = dataset.events.timestamps
    write_histories(histories, users, with_newcomer, dataset.item_ids, times_us=times_us, kinds=kinds)
    return ReleaseParts(
        items=dataset.items,
        fields=dataset.fields,
        channels=channels,
        fusion=Fusion.equal(list(configs), 50),
        histories=histories,
        towers=towers,
        towers_space=space,
        exposures=("impression",),
    )


@pytest.fixture(scope="session")
def release(release_path: Path) -> Release:
    return load_release(release_path)


def make_api(release_path: Path, **live: Any) -> FastAPI:
    """The collapsed application, as a gateway replica holds it."""
    config = ServeConfig(release=str(release_path), limits=LIMITS, live=Live(**live))
    return Gateway(config).__serve_build_asgi_app__()


@pytest.fixture(scope="session")
def api(release_path: Path) -> FastAPI:
    """Nothing is written into this one: tests compare it with the release."""
    return make_api(release_path)


class Client:
    """Asks an application in this process."""

    def __init__(self, app: FastAPI, runner: asyncio.Runner) -> None:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._client = httpx.AsyncClient(transport=transport, base_url="http://test")
        self._runner = runner

    def get(self, path: str, **kwargs: Any) -> httpx.Response:
        return self.request("GET", path, **kwargs)

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.request("POST", path, json=body)

    def request(self, method: str, path: str, **kwargs: Any) -> httpx.Response:
        return self._runner.run(self._client.request(method, path, **kwargs))


@pytest.fixture(scope="session")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="session")
def client(api: FastAPI, runner: asyncio.Runner) -> Client:
    return Client(api, runner)


@pytest.fixture(scope="session")
def writable(release_path: Path, runner: asyncio.Runner, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """An application with a store of its own, for what is generated and kept."""
    return Client(make_api(release_path, store=f"sqlite:{tmp_path_factory.mktemp('fuzz') / 'live.sqlite'}"), runner)


Replicas = Callable[..., list[Client]]


@pytest.fixture
def replicas(release_path: Path, runner: asyncio.Runner) -> Replicas:
    """Several gateway replicas of one application, in this process."""

    def start(count: int, **live: Any) -> list[Client]:
        return [Client(make_api(release_path, **live), runner) for _ in range(count)]

    return start
