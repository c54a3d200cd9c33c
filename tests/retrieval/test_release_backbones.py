"""Questions by text and by picture, encoded by the backbones that a release carries."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from recsys_ray.core.errors import DataError
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import TextConfig, TwoTowerConfig, UserTowerConfig
from recsys_ray.encoders.image import load_image_backbone
from recsys_ray.encoders.item_inputs import FeatureTable, build_item_inputs
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.encoders.two_tower import build, save_towers
from recsys_ray.index.spec import IndexConfig
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.release import FrozenSpace, ReleaseParts, load_release
from tests.retrieval.test_release import FIELDS, ITEMS, TITLES, N, make_events, make_parts, publish


@pytest.mark.weights
def test_a_text_is_encoded_by_the_releases_own_backbone(tmp_path: Path) -> None:
    backbone = load_text_backbone("package:minilm")
    features = backbone.encode(TITLES, 16)
    config = TwoTowerConfig(
        dim=16, text=TextConfig(), image=None, vectors=None, attributes=None, id=None, user=UserTowerConfig(blocks=1)
    )
    model = build(config, FIELDS, N, {"text": features.shape[1]}).eval()
    inputs = build_item_inputs(ITEMS, FIELDS, config, {"text": FeatureTable(features, np.ones(N, np.bool_))})
    vectors = embed_items(model, inputs, 8)
    (tmp_path / "towers").mkdir()
    space_id = save_towers(tmp_path / "towers", model, {"text": backbone})
    spaces = {
        "towers": Space(space_id, vectors, vectors[:3]),
        "text": Space(backbone.id, features, features[:3]),
    }
    data = FitData(make_events(), ITEMS, FIELDS, spaces, None, IndexConfig(factory="exact"))
    near = fit_channel("nearest", NearestConfig(), data)
    frozen = fit_channel("like", NearestConfig(space="text"), data)
    mixed = fit_channel("mixed", ContentConfig(space="text", mix=0.5), data)
    parts = make_parts(tmp_path, channels=(near, frozen, mixed))
    parts = ReleaseParts(
        **{
            **vars(parts),
            "towers": tmp_path / "towers",
            "towers_space": space_id,
            "frozen": (FrozenSpace(backbone.id, features.shape[1], "text"),),
        }
    )
    release = load_release(publish(tmp_path / "store", parts))
    release.warm_up()
    found = release.search(TITLES[11], k=5)
    # The item's own text is in every space its nearest neighbour, its cosine 1.
    assert found[0].item_id == "i11"
    assert found[0].channels == {"content": 1, "nearest": 1, "like": 1, "mixed": 1}
    encoded = release.retriever.encode(release.question(text=TITLES[11]).queries).vectors
    np.testing.assert_allclose(encoded[space_id][0], vectors[11], atol=0.02)
    np.testing.assert_allclose(encoded[backbone.id][0], features[11], atol=0.02)


@pytest.mark.weights
def test_a_picture_finds_the_item_it_shows(tmp_path: Path) -> None:
    def picture(row: int) -> bytes:
        noise = np.random.default_rng(row).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(noise).resize((64, 64), Image.Resampling.NEAREST).save(buffer, "PNG")
        return buffer.getvalue()

    backbone = load_image_backbone("package:efficientnet_lite0")
    pictures = [picture(row) for row in range(6)]
    vectors = np.zeros((N, backbone.dim), np.float32)
    vectors[:6] = backbone.encode(pictures, 6)
    backbone.save(tmp_path / "image")
    spaces = {"image": Space(backbone.id, vectors, vectors[:3])}
    data = FitData(make_events(), ITEMS, FIELDS, spaces, None, IndexConfig(factory="exact"))
    parts = make_parts(tmp_path, channels=(fit_channel("looks", NearestConfig(space="image"), data),))
    frozen = (FrozenSpace(backbone.id, backbone.dim, "image"),)
    parts = ReleaseParts(**{**vars(parts), "frozen": frozen, "backbones": {"image": tmp_path / "image"}})
    release = load_release(publish(tmp_path / "store", parts))
    assert release.search_picture(pictures[4], k=2)[0].item_id == "i4"
    with pytest.raises(DataError):
        release.search_picture(b"no picture", k=2)
