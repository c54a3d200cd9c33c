"""One item encoded at once against the batch encoding of a run, with the packaged backbones."""

import io

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from recsys_ray.core.schema import Fields, NumericField
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.image import load_image_backbone
from recsys_ray.encoders.item_inputs import FeatureTable, build_item_inputs
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.encoders.two_tower import build
from recsys_ray.retrieval.item_encoder import derive, encode_item
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder, TowerQueryEncoder

FIELDS = Fields(
    title="title",
    text=("title", "description"),
    categorical=("tags",),
    numeric={"price": NumericField(mean=10.0, std=4.0)},
    vectors={"audio": 3},
    tokens={"tags=red": 1, "tags=blue": 2},
)
ITEMS = pa.table(
    {
        "item_id": ["a", "b"],
        "title": ["A red shoe", None],
        "description": ["for long walks", None],
        "tags": [["red", "unheard"], None],
        "price": [14.0, None],
        "audio": pa.array([[0.1, 0.2, 0.3], None], pa.list_(pa.float32(), 3)),
    }
)


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((80, 60), 60).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.weights
def test_an_item_is_encoded_as_in_a_batch() -> None:
    backbones = {
        "text": load_text_backbone("package:minilm"),
        "image": load_image_backbone("package:efficientnet_lite0"),
    }
    config = TwoTowerConfig(dim=16)
    torch.manual_seed(0)
    model = build(config, FIELDS, 2, {name: backbone.dim for name, backbone in backbones.items()}).eval()
    table, shot = derive(ITEMS, FIELDS), picture()
    assert table.column("_tokens").to_pylist() == [[1], []]
    np.testing.assert_allclose(table.column("_numeric").to_pylist(), [[1.0], [0.0]])
    text = backbones["text"].encode(["A red shoe\nfor long walks"], 1)
    features = {
        "text": FeatureTable(np.concatenate([text, 0 * text]), np.array([True, False])),
        "image": FeatureTable(np.repeat(backbones["image"].encode([shot], 1), 2, 0), np.array([True, False])),
    }
    encoders = (
        TowerQueryEncoder(model, np.zeros((2, 16), np.float32), "towers", backbones.get),
        FrozenQueryEncoder("text", None, "words", backbones["text"].dim, backbones.get),
    )
    for known in (True, False):
        rows = np.array([0, 1]) if known else np.array([-1, -1])
        with torch.inference_mode():
            expected = model.item_tower(build_item_inputs(table, FIELDS, config, features, id_rows=rows)).numpy()
        full = encode_item(encoders, table.slice(0, 1), FIELDS, shot, int(rows[0]))
        np.testing.assert_allclose(full["towers"], expected[0], atol=1e-5)
        np.testing.assert_allclose(full["words"], text[0], atol=1e-5)
        bare = encode_item(encoders, table.slice(1, 1), FIELDS, None, int(rows[1]))
        np.testing.assert_allclose(bare["towers"], expected[1], atol=1e-5)
        assert set(bare) == {"towers"}
