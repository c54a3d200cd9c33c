import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.modality import Backbone
from recsys_ray.encoders.text import load_text_backbone

pytestmark = pytest.mark.slow

TEXTS = ["red shoe", "the warm light blue coat", "a", "coat"]


@pytest.fixture
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a folder must not cause network traffic")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("_no_network")
def test_features_are_the_mean_of_the_tokens(text_checkpoint: Path):
    from transformers import AutoModel, AutoTokenizer

    backbone = load_text_backbone(str(text_checkpoint), precision="fp32")
    assert isinstance(backbone, Backbone)
    tokens = AutoTokenizer.from_pretrained(text_checkpoint)("red shoe", return_tensors="pt")
    with torch.inference_mode():
        mean = AutoModel.from_pretrained(text_checkpoint).eval()(**tokens).last_hidden_state[0].mean(0)
    expected = (mean / mean.norm()).numpy()
    assert np.allclose(backbone.encode(TEXTS, 4)[0], expected, atol=1e-5)


def test_the_batch_a_text_is_in_does_not_matter(text_checkpoint: Path):
    backbone = load_text_backbone(str(text_checkpoint), precision="fp32")
    together = backbone.encode(TEXTS, 4)
    assert together.shape == (4, backbone.dim)
    assert np.allclose(together, np.concatenate([backbone.encode([text], 1) for text in TEXTS]), atol=1e-5)
    assert np.allclose(together, backbone.encode(TEXTS, 3), atol=1e-5)
    assert backbone.encode([], 4).shape == (0, backbone.dim)


def test_long_texts_are_cut(text_checkpoint: Path):
    backbone = load_text_backbone(str(text_checkpoint), max_tokens=4)
    assert backbone.preprocess(["red shoe coat light warm"])["input_ids"].shape == (1, 4)
    assert load_text_backbone(str(text_checkpoint), max_tokens=900).max_tokens == 32


@pytest.mark.usefixtures("_no_network")
def test_a_saved_backbone_loads_alone_and_keeps_its_id(text_checkpoint: Path, tmp_path: Path):
    backbone = load_text_backbone(str(text_checkpoint), max_tokens=7, precision="fp32")
    backbone.save(tmp_path)
    loaded = load_text_backbone(str(tmp_path))
    assert loaded.id == backbone.id
    assert np.array_equal(loaded.encode(TEXTS, 4), backbone.encode(TEXTS, 4))
    weights = "model.safetensors"
    assert (tmp_path / weights).stat().st_ino == (text_checkpoint / weights).stat().st_ino
    loaded.save(tmp_path / "again")
    assert load_text_backbone(str(tmp_path / "again")).id == backbone.id


def test_what_becomes_of_a_text_is_part_of_the_id(text_checkpoint: Path, tmp_path: Path):
    """Features are cached by the id: the same weights behind another tokenizer give other features."""
    shutil.copytree(text_checkpoint, tmp_path, dirs_exist_ok=True)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    cased, uncased = load_text_backbone(str(tmp_path)), load_text_backbone(str(text_checkpoint))
    assert not np.array_equal(cased.preprocess(["RED"])["input_ids"], uncased.preprocess(["RED"])["input_ids"])
    assert cased.id != uncased.id


def test_changed_weights_are_written_not_linked(text_checkpoint: Path, tmp_path: Path):
    backbone = load_text_backbone(str(text_checkpoint), precision="fp32")
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    backbone.save(tmp_path)
    loaded = load_text_backbone(str(tmp_path))
    assert loaded.id != backbone.id
    assert np.allclose(loaded.encode(TEXTS, 4), backbone.encode(TEXTS, 4), atol=1e-6)


def test_a_sentence_transformers_folder_says_how_it_pools(text_checkpoint: Path, tmp_path: Path):
    load_text_backbone(str(text_checkpoint)).save(tmp_path)
    (tmp_path / "backbone.json").unlink()
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    backbone = load_text_backbone(str(tmp_path))
    assert backbone.pooling == "cls"
    backbone.save(tmp_path / "saved")
    assert load_text_backbone(str(tmp_path / "saved")).id == backbone.id
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode_lasttoken": true}')
    with pytest.raises(ConfigError, match="pooling_mode_lasttoken"):
        load_text_backbone(str(tmp_path))


def test_a_hub_id_says_how_it_pools_too(text_checkpoint: Path, tmp_path: Path):
    """A cache as the hub's client fills it, without a network."""
    repository = tmp_path / "models--somebody--tiny"
    snapshot = repository / "snapshots" / "c0ffee"
    shutil.copytree(text_checkpoint, snapshot)
    (snapshot / "1_Pooling").mkdir()
    (snapshot / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("c0ffee")
    code = "from recsys_ray.encoders.text import load_text_backbone as load; print(load('somebody/tiny').pooling)"
    env = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "cls\n", done.stderr


@pytest.mark.parametrize("kind", ["Roberta", "MPNet", "Camembert"])
def test_texts_are_cut_where_positions_end(kind: str, text_checkpoint: Path, tmp_path: Path):
    import transformers

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=13, max_position_embeddings=12, pad_token_id=1, type_vocab_size=2, **size
    )
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text_checkpoint / name, tmp_path)
    backbone = load_text_backbone(str(tmp_path), max_tokens=40)
    assert backbone.max_tokens == 10
    assert np.isfinite(backbone.encode(["red shoe " * 20], 1)).all()


def test_padding_goes_to_the_right_whatever_the_tokenizer_prefers(text_checkpoint: Path):
    backbone = load_text_backbone(str(text_checkpoint), precision="fp32")
    expected = backbone.encode(TEXTS, 4)
    backbone.tokenizer.padding_side = "left"
    assert np.array_equal(backbone.encode(TEXTS, 4), expected)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("package:maxilm", "package:minilm"),
        ("/no/such/folder", "There is no such folder"),
        ("./nowhere", "There is no such folder"),
    ],
)
def test_what_is_not_there_is_a_setting_error(spec: str, says: str):
    with pytest.raises(ConfigError, match=says) as error:
        load_text_backbone(spec)
    assert error.value.setting == "model.text.backbone"


def test_a_folder_without_a_text_encoder_is_refused(image_checkpoint, tmp_path: Path):
    for folder in (image_checkpoint("vit"), image_checkpoint("clip"), tmp_path):
        with pytest.raises(ConfigError, match="text encoder"):
            load_text_backbone(str(folder))


def test_damaged_weights_are_refused(text_checkpoint: Path, tmp_path: Path):
    load_text_backbone(str(text_checkpoint)).save(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigError, match="text encoder"):
        load_text_backbone(str(tmp_path))


@pytest.mark.weights
def test_the_packaged_minilm_knows_what_is_alike():
    backbone = load_text_backbone("package:minilm")
    texts = ["A man travels to space.", "An astronaut flies to the moon.", "A recipe for apple pie."] * 4
    vectors = backbone.encode(texts, 12)
    assert vectors.shape == (12, 384)
    alike, unlike = vectors[0] @ vectors[1], vectors[0] @ vectors[2]
    assert alike > unlike + 0.3
    exact = load_text_backbone("package:minilm", precision="fp32").encode(texts, 12)
    assert (vectors * exact).sum(1).min() > 0.999
