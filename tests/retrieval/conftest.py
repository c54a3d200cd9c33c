"""A small release with every kind of file that can break, whose loading needs no torch."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.artifacts import MANIFEST, ArtifactStore
from recsys_ray.core.events import Events
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import FrozenSpace, ReleaseParts, write_release

ITEMS, USERS, DIM = 300, 40, 16
Publish = Callable[..., Path]


def _parts(root: Path, items: int = ITEMS, dim: int = DIM) -> ReleaseParts:
    rng = np.random.default_rng(0)
    titles = [f"{'red' if row % 2 else 'blue'} thing {row % 50}" for row in range(items)]
    ids = [f"i{row}" for row in range(items)]
    tokens = pa.array([[1 + row % 2] for row in range(items)], pa.list_(pa.int32()))
    table = pa.table({"item_id": ids, "title": titles, "_text": titles, "_tokens": tokens})
    users = np.repeat(np.arange(USERS), 8)
    rows = rng.integers(0, items, len(users))
    events = Events.from_columns(users, rows, np.arange(len(users)), np.ones(len(users), np.float32), USERS, items)
    root.mkdir(parents=True, exist_ok=True)
    write_histories(root / "histories.parquet", [f"u{user}" for user in range(USERS)], events.histories, IdMap(ids))
    vectors = rng.standard_normal((items, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    fields = Fields(title="title", text=("title",), tokens={"a": 1, "b": 2}, user_tokens={})
    spaces = {"text": Space("backbone", vectors, vectors[:20])}
    data = FitData(events, table, fields, spaces, None, IndexConfig(factory="HNSW16,Flat"))
    configs = {
        "nearest": NearestConfig(space="text"),
        "co_visitation": CoVisitationConfig(),
        "content": ContentConfig(space=None),
        "popularity": PopularityConfig(),
    }
    channels = tuple(fit_channel(name, config, data) for name, config in configs.items())
    frozen = (FrozenSpace("backbone", dim, "text"),)
    return ReleaseParts(
        table, fields, channels, Fusion.equal(list(configs), 50), root / "histories.parquet", frozen=frozen
    )


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> ReleaseParts:
    pytest.importorskip("faiss")
    return replace(_parts(tmp_path_factory.mktemp("parts")), settings={"index": {"factory": "HNSW16,Flat"}})


@pytest.fixture(scope="session")
def make_parts() -> Callable[..., ReleaseParts]:
    return _parts


@pytest.fixture(scope="session")
def published(parts: ReleaseParts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One release; tests that break or move it take a copy."""
    store = ArtifactStore(tmp_path_factory.mktemp("published"))
    return store.publish("release", "r1", lambda folder: write_release(folder, parts), {}, {}).path


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(published, tmp_path / "release" / "r1"))


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Path:
    """A folder of three releases of the same content, r1 the oldest, whose files are copies."""
    for day, name in enumerate(("r1", "r2", "r3"), 1):
        path = Path(shutil.copytree(published, tmp_path / "artifacts" / "release" / name))
        manifest = json.loads((path / MANIFEST).read_text())
        manifest |= {"id": name, "created_at": f"2026-01-0{day}T00:00:00+00:00"}
        (path / MANIFEST).write_text(json.dumps(manifest))
    return tmp_path / "artifacts" / "release"


@pytest.fixture(scope="session")
def rehash() -> Callable[[Path], None]:
    """Makes the manifest fit whatever the files are now, so that hashes say nothing."""

    def run(release: Path) -> None:
        manifest = json.loads((release / MANIFEST).read_text())
        files = [file for file in sorted(release.rglob("*")) if file.is_file() and file.name != MANIFEST]
        manifest["files"] = {
            file.relative_to(release).as_posix(): {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "num_bytes": file.stat().st_size,
            }
            for file in files
        }
        (release / MANIFEST).write_text(json.dumps(manifest))

    return run
