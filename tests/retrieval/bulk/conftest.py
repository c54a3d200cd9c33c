"""A small release of towers with user attributes, co-visitation, content and popularity."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.core.events import Events
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import IdConfig, TwoTowerConfig, UserTowerConfig
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
from recsys_ray.retrieval.release import ReleaseParts, write_release

U, N = 300, 90
WORDS = ("red", "blue", "green", "thing", "shoe")
TITLES = [f"{WORDS[row % 3]} {WORDS[3 + row % 2]} {row}" for row in range(N)]
ITEMS = pa.table(
    {
        "item_id": [f"i{row}" for row in range(N)],
        "title": TITLES,
        "year": pa.array([1990 + row % 30 for row in range(N)], pa.int64()),
        "_text": TITLES,
        "_tokens": pa.array([[1 + row % 2] for row in range(N)], pa.list_(pa.int32())),
    }
)
FIELDS = Fields(title="title", text=("title",), tokens={"a": 1, "b": 2}, user_tokens={"x": 1, "y": 2})


@pytest.fixture(scope="session")
def release_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bulk")
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 15, U)  # some have no history at all
    users = np.repeat(np.arange(U), counts)
    times = rng.integers(1, 10**6, len(users))
    events = Events.from_columns(users, rng.integers(0, N, len(users)), times, np.ones(len(users), np.float32), U, N)
    write_histories(
        root / "histories.parquet",
        [f"u{user}" for user in range(U)],
        events.histories,
        IdMap(ITEMS.column("item_id").to_pylist()),
        rng.integers(0, 3, (U, 2)),
        times_us=events.timestamps,
        kinds=pa.array(rng.choice(["view", "purchase"], len(users)).tolist()),
    )
    spaces, space_id = make_towers(root / "towers")
    data = FitData(events, ITEMS, FIELDS, spaces, None, IndexConfig(factory="exact"))
    configs = {
        "nearest": NearestConfig(),
        "co_visitation": CoVisitationConfig(),
        "content": ContentConfig(),
        "popularity": PopularityConfig(),
    }
    parts = ReleaseParts(
        items=ITEMS,
        fields=FIELDS,
        channels=tuple(fit_channel(name, config, data) for name, config in configs.items()),
        fusion=Fusion.equal(list(configs), 30),
        histories=root / "histories.parquet",
        towers=root / "towers",
        towers_space=space_id,
    )
    return ArtifactStore(root).publish("release", "r1", lambda folder: write_release(folder, parts), {}, {}).path


def make_towers(directory: Path) -> tuple[dict[str, Space], str]:
    torch.manual_seed(0)
    directory.mkdir()
    user = UserTowerConfig(blocks=1, heads=2, history=6)
    config = TwoTowerConfig(dim=16, text=None, image=None, vectors=None, id=IdConfig(), user=user)
    model = build(config, FIELDS, N, {}).eval()
    vectors = embed_items(model, build_item_inputs(ITEMS, FIELDS, config, {}), 64)
    space_id = save_towers(directory, model, {})
    return {"towers": Space(space_id, vectors, vectors[:3])}, space_id
