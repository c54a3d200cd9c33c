from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_ray.core.schema import Fields
from recsys_ray.embedding.encode import compute_features, embed_items
from recsys_ray.embedding.on_ray import Pool, compute_features_on_ray, embed_items_on_ray
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import ImageConfig, TextConfig, TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import build, save_towers

pytestmark = pytest.mark.ray


@pytest.mark.usefixtures("ray_cluster")
def test_actors_compute_the_same_features_and_fill_the_same_cache(
    items: pa.Table, text_config: TextConfig, image_config: ImageConfig, tmp_path: Path
):
    for modality, config in (("text", text_config), ("image", image_config)):
        backbone = load_backbone(config)
        here = compute_features(items, modality, backbone, tmp_path / "here", config.batch_size)
        there = compute_features_on_ray(items, config, backbone, tmp_path / "there", Pool(actors=2))
        assert np.array_equal(here.present, there.present)
        assert np.array_equal(here.vectors, there.vectors)
        shards = [len(list((tmp_path / place).rglob("*.parquet"))) for place in ("here", "there")]
        assert shards[0] == shards[1] > 0


@pytest.mark.usefixtures("ray_cluster")
def test_actors_embed_the_same_items(tmp_path: Path):
    model = build(TwoTowerConfig(dim=8), Fields(), 50, {"text": 6})
    (tmp_path / "towers").mkdir()
    save_towers(tmp_path / "towers", model, {})
    values = {"text": {"vector": torch.randn(50, 6)}, "id": {"row": torch.arange(50)}}
    inputs = ItemInputs(values, {"text": torch.rand(50) < 0.7, "id": torch.rand(50) < 0.7})
    vectors = embed_items_on_ray(tmp_path / "towers", 8, inputs, tmp_path / "scratch", 20, Pool(actors=2))
    assert np.allclose(vectors, embed_items(model, inputs, 20), atol=1e-6)
    assert not list((tmp_path / "scratch").iterdir())
