from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.image import load_image_backbone
from recsys_ray.encoders.item_inputs import FeatureTable, build_item_inputs, pieces_of
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.encoders.two_tower import build

Catalogue = tuple[pa.Table, Fields]


def test_every_modality_says_who_has_it(catalogue: Catalogue):
    items, fields = catalogue
    features = {"text": FeatureTable(np.ones((6, 3), np.float32), np.array([1, 1, 1, 1, 1, 0], bool))}
    inputs = build_item_inputs(items, fields, TwoTowerConfig(), features)
    present = {name: mask.int().tolist() for name, mask in inputs.present.items()}
    assert present == {
        "text": [1, 1, 1, 1, 1, 0],
        "vectors:sound": [1, 1, 0, 0, 1, 0],  # no vector, or one with NaN in it
        "attributes": [1, 1, 1, 1, 0, 0],
        "id": [1, 1, 1, 1, 1, 1],
    }
    assert inputs.values["attributes"]["tokens"].tolist() == [
        [1, 0, 0],
        [2, 3, 0],
        [0] * 3,
        [1, 2, 3],
        [0] * 3,
        [0] * 3,
    ]
    assert torch.isfinite(inputs.values["vectors:sound"]["vector"]).all()
    assert inputs.values["vectors:sound"]["vector"][4].tolist() == [5, 6]
    model = build(TwoTowerConfig(dim=8), fields, 6, {"text": 3}).eval()
    assert set(model.item_tower.names) == set(inputs.present)
    assert torch.allclose(model.item_tower(inputs).norm(dim=1), torch.ones(6), atol=1e-5)


def test_a_slice_of_the_catalogue_gives_the_same_rows(catalogue: Catalogue):
    items, fields = catalogue
    config = TwoTowerConfig.parse({"attributes": {"max_tokens": 2}})
    whole = build_item_inputs(items, fields, config, {})
    part = build_item_inputs(items.slice(2, 3), fields, config, {})
    for name in ("vectors:sound", "attributes"):
        assert torch.equal(part.present[name], whole.present[name][2:5])
        for key, tensor in part.values[name].items():
            assert torch.equal(tensor, whole.values[name][key][2:5])
    assert part.values["attributes"]["tokens"].shape == (3, 2)


def test_items_that_training_did_not_know_have_no_id(catalogue: Catalogue):
    items, fields = catalogue
    inputs = build_item_inputs(items, fields, TwoTowerConfig(), {}, id_rows=np.array([3, -1, 2, 0, 1, -1]))
    assert inputs.present["id"].tolist() == [True, False, True, True, True, False]


@pytest.mark.parametrize("rows", [slice(0, 6), slice(4, 6), slice(5, 6)])
def test_trained_backbones_read_pieces_and_skip_what_is_broken(
    rows: slice, catalogue: Catalogue, text_checkpoint: Path, image_checkpoint: Callable[[str], Path]
):
    items, fields = catalogue
    items = items.slice(rows.start, rows.stop - rows.start)
    backbones = {
        "text": load_text_backbone(str(text_checkpoint)),
        "image": load_image_backbone(str(image_checkpoint("vit"))),
    }
    inputs = build_item_inputs(items, fields, TwoTowerConfig(), {}, backbones)
    assert inputs.present["text"].tolist() == [True, True, True, True, True, False][rows]
    assert inputs.present["image"].tolist() == [True, True, True, True, False, False][rows]
    assert inputs.values["image"]["pixels"].shape == (len(items), 3, 32, 32)
    assert inputs.values["image"]["pixels"].dtype == torch.uint8


def test_equal_texts_have_equal_hashes(catalogue: Catalogue):
    pieces = pieces_of(catalogue[0], "text")
    assert pieces.hashes[0] == pieces.hashes[3] != pieces.hashes[1]
    assert pieces.hashes[5] is None
