import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.encoders.image import load_image_backbone
from recsys_ray.encoders.modality import Backbone
from recsys_ray.encoders.picture import open_picture

pytestmark = pytest.mark.slow

ARCHITECTURES = ("vit", "dinov2", "clip", "siglip")


def expected_vectors(folder: Path, pictures: list[str]) -> np.ndarray:
    """What Hugging Face's own processor and model say, without our scaling on the device."""
    from transformers import AutoImageProcessor, AutoModel

    pixels = AutoImageProcessor.from_pretrained(folder)(
        images=[Image.open(path).convert("RGB") for path in pictures], return_tensors="pt"
    )["pixel_values"]
    model = AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        if "vision_config" in model.config.to_dict():
            answer = model.get_image_features(pixel_values=pixels).pooler_output
        else:
            answer = model(pixel_values=pixels).pooler_output
    return torch.nn.functional.normalize(answer, dim=-1).numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hub_models_give_their_own_pooled_vectors(
    architecture: str, image_checkpoint: Callable[[str], Path], pictures: list[str], tmp_path: Path
):
    folder = image_checkpoint(architecture)
    backbone = load_image_backbone(str(folder))
    assert isinstance(backbone, Backbone)
    vectors = backbone.encode(pictures, 4)
    assert vectors.shape == (len(pictures), backbone.dim)
    assert np.allclose(vectors, expected_vectors(folder, pictures), atol=1e-4)
    backbone.save(tmp_path)
    loaded = load_image_backbone(str(tmp_path))
    assert loaded.id == backbone.id
    assert np.array_equal(loaded.encode(pictures, 4), vectors)


def test_an_untrained_pooling_layer_is_not_used(
    image_checkpoint: Callable[[str], Path], pictures: list[str], tmp_path: Path
):
    """Checkpoints of classifiers have none; transformers fills in random weights, different each time."""
    from safetensors.torch import load_file, save_file

    folder = image_checkpoint("vit")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "pooler." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    first, second = load_image_backbone(str(folder)), load_image_backbone(str(folder))
    assert first.id == second.id
    assert np.array_equal(first.encode(pictures, 8), second.encode(pictures, 8))
    first.source = None  # as from the hub: all weights are written anew, those of the pooling layer among them
    first.save(tmp_path / "once")
    load_image_backbone(str(tmp_path / "once")).save(tmp_path / "twice")
    saved = load_image_backbone(str(tmp_path / "twice"))
    assert saved.id == first.id
    assert np.array_equal(saved.encode(pictures, 8), first.encode(pictures, 8))


def test_how_a_picture_is_resized_is_part_of_the_id(image_checkpoint: Callable[[str], Path], pictures: list[str]):
    """Features are cached by the id: the same weights behind another resampling give other features."""
    folder = image_checkpoint("vit")
    before = load_image_backbone(str(folder))
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps({**settings, "resample": 0}))
    after = load_image_backbone(str(folder))
    assert not np.array_equal(before.encode(pictures, 8), after.encode(pictures, 8))
    assert before.id != after.id


def test_incomplete_weights_are_refused(image_checkpoint: Callable[[str], Path]):
    from safetensors.torch import load_file, save_file

    folder = image_checkpoint("vit")
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if "layernorm_after" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="lacks weights"):
        load_image_backbone(str(folder))


def test_bytes_and_paths_are_the_same_picture(image_checkpoint: Callable[[str], Path], pictures: list[str]):
    backbone = load_image_backbone(str(image_checkpoint("vit")))
    content = Path(pictures[0]).read_bytes()
    assert np.array_equal(backbone.encode([content], 1), backbone.encode([pictures[0]], 1))
    assert backbone.preprocess(pictures)["pixels"].dtype == np.uint8


def test_every_kind_of_picture_becomes_rgb(tmp_path: Path):
    for mode in ("L", "RGBA", "P", "CMYK", "1"):
        path = tmp_path / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}"
        Image.new(mode, (9, 5)).save(path)
        assert open_picture(path).mode == "RGB"


def test_a_picture_on_its_side_is_put_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (9, 5)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (5, 9)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n broken"])
def test_what_is_no_picture_is_a_data_error(content: bytes, tmp_path: Path):
    (tmp_path / "x.png").write_bytes(content)
    for piece in (content, str(tmp_path / "x.png"), str(tmp_path / "missing.png")):
        with pytest.raises(DataError, match="cannot be decoded"):
            open_picture(piece)


def test_a_text_model_is_refused(text_checkpoint: Path, tmp_path: Path):
    for folder in (text_checkpoint, tmp_path):
        with pytest.raises(ConfigError, match="vision model"):
            load_image_backbone(str(folder))


@pytest.mark.weights
def test_the_packaged_lite_travels_without_its_package(pictures: list[str], tmp_path: Path):
    backbone = load_image_backbone("package:efficientnet_lite0")
    vectors = backbone.encode(pictures, 8)
    assert vectors.shape == (len(pictures), 1280)
    backbone.save(tmp_path / "once")
    load_image_backbone(str(tmp_path / "once")).save(tmp_path / "twice")
    loaded = load_image_backbone(str(tmp_path / "twice"))
    assert loaded.id == backbone.id
    assert np.array_equal(loaded.encode(pictures, 8), vectors)


@pytest.mark.weights
@pytest.mark.shared_data
def test_the_posters_of_one_series_are_alike(shared_data: Path):
    """Nearest pictures share a genre more often than chance has it (.30 of random pairs do)."""
    import pyarrow.parquet as pq

    rows = pq.read_table(shared_data / "ml1m" / "items.parquet").slice(0, 200).to_pylist()
    rows = [row for row in rows if row["image"]]
    paths = [str(shared_data / "ml1m" / row["image"]) for row in rows]
    vectors = load_image_backbone("package:efficientnet_lite0", "auto").encode(paths, 16)
    scores = vectors @ vectors.T
    np.fill_diagonal(scores, -1)
    nearest = np.argsort(-scores, axis=1)[:, :5]
    genres = [set(row["categories"] or ()) for row in rows]
    share = np.array([[bool(genres[a] & genres[b]) for b in range(len(rows))] for a in range(len(rows))])
    assert np.take_along_axis(share, nearest, 1).mean() > share.mean() + 0.05
