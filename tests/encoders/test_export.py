"""What leaves as a Hugging Face directory says the same to whoever loads it without recsys_ray."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.export import export_backbones
from recsys_ray.encoders.image import load_image_backbone
from recsys_ray.encoders.text import TextBackbone, load_text_backbone

pytestmark = pytest.mark.slow

TEXTS = ["red shoe", "the warm light blue coat", "a", "coat the the the the the the the the red"]
ABSENT = importlib.util.find_spec("sentence_transformers") is None
needs_peer = pytest.mark.skipif(ABSENT, reason="sentence-transformers is not installed: pip install 'recsys-ray[dev]'")


def exported_text(backbone: TextBackbone, folder: Path) -> Path:
    backbone.save(folder / "saved")
    (one,) = export_backbones({"text": folder / "saved"}, folder / "hub")
    assert one.path == folder / "hub" / "text"
    assert [file.name for file in one.path.glob("*.safetensors")] == ["model.safetensors"]
    return one.path


def by_sentence_transformers(folder: Path, texts: list[str]) -> np.ndarray:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode(texts)


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@needs_peer
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sentence_transformers_reads_limit_pooling_and_weights(
    text_checkpoint: Path, tmp_path: Path, pooling: str
) -> None:
    source = load_text_backbone(str(text_checkpoint), max_tokens=9, precision="fp32")
    backbone = TextBackbone(source.model, source.tokenizer, 9, pooling, "fp32", None)
    with torch.no_grad():
        for parameter in backbone.model.parameters():  # as training would leave it
            parameter.add_(torch.randn_like(parameter) * 0.1)

    vectors = by_sentence_transformers(exported_text(backbone, tmp_path), TEXTS)

    expected = backbone.encode(TEXTS, 4)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert np.abs(expected - load_text_backbone(str(text_checkpoint), 9, "fp32").encode(TEXTS, 4)).max() > 1e-2


@needs_peer
@pytest.mark.weights
def test_the_packaged_text_encoder_leaves_as_it_is(tmp_path: Path) -> None:
    backbone = load_text_backbone("package:minilm", precision="fp32")
    vectors = by_sentence_transformers(exported_text(backbone, tmp_path), TEXTS)
    assert cosines(vectors, backbone.encode(TEXTS, 4)).min() > 0.9999


def test_transformers_loads_the_text_encoder(text_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    backbone = load_text_backbone(str(text_checkpoint), precision="fp32")
    folder = exported_text(backbone, tmp_path)
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    tokens = AutoTokenizer.from_pretrained(folder)(["red shoe"], return_tensors="pt")
    with torch.inference_mode():
        mean = model.eval()(**tokens).last_hidden_state[0].mean(0).numpy()
    assert not report["missing_keys"]
    assert cosines(mean[None], backbone.encode(["red shoe"], 1)).min() > 0.9999
    assert load_text_backbone(str(folder)).id == backbone.id


@pytest.mark.parametrize("architecture", ["vit", "clip"])
def test_transformers_loads_the_image_encoder(
    image_checkpoint: Callable[[str], Path], pictures: list[str], tmp_path: Path, architecture: str
) -> None:
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModel

    backbone = load_image_backbone(str(image_checkpoint(architecture)))
    backbone.save(tmp_path / "saved")
    (one,) = export_backbones({"image": tmp_path / "saved"}, tmp_path / "hub")
    model = AutoModel.from_pretrained(one.path).eval()
    pixels = AutoImageProcessor.from_pretrained(one.path)(
        [Image.open(path).convert("RGB") for path in pictures], return_tensors="pt"
    )
    with torch.inference_mode():
        answer = model.get_image_features(**pixels) if architecture == "clip" else model(**pixels)
    assert cosines(answer.pooler_output.numpy(), backbone.encode(pictures, 6)).min() > 0.9999


@pytest.mark.weights
def test_what_transformers_does_not_know_leaves_for_our_own_loader(tmp_path: Path) -> None:
    backbone = load_image_backbone("package:efficientnet_lite0")
    backbone.save(tmp_path / "saved")
    (one,) = export_backbones({"image": tmp_path / "saved"}, tmp_path / "hub")
    assert "transformers has no efficientnet_lite0" in one.loads_with
    assert load_image_backbone(str(one.path)).id == backbone.id


def test_an_export_never_writes_over_anything(text_checkpoint: Path, tmp_path: Path) -> None:
    backbone = load_text_backbone(str(text_checkpoint))
    folder = exported_text(backbone, tmp_path)
    before = json.loads((folder / "modules.json").read_text())
    with pytest.raises(ConfigError, match="new or empty"):
        export_backbones({"text": tmp_path / "saved"}, tmp_path / "hub")
    assert json.loads((folder / "modules.json").read_text()) == before
    assert not list(tmp_path.glob(".*.part"))
