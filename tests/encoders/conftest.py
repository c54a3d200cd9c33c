"""Shapes and types of every signature in encoders are checked while these tests run, and tiny checkpoints on disk."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from jaxtyping import install_import_hook

from recsys_ray.core.schema import (
    IMAGE,
    IMAGE_HASH,
    ITEM_ID,
    NUMERIC,
    TEXT,
    TOKENS,
    Fields,
    NumericField,
    vectors_type,
)

# Before any test module imports the package, else the hook comes too late.
install_import_hook("recsys_ray.encoders", "beartype.beartype")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "coat", "the", "a", "warm", "light"]


@pytest.fixture(autouse=True)
def _same_weights_each_time() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two thousand weights with a tokenizer of a dozen words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=32,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six noisy pictures of different shapes and colours."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    paths = []
    for number, shape in enumerate([(40, 60), (60, 40), (50, 50), (33, 71), (80, 30), (64, 64)]):
        noise = rng.integers(0, 60, (*shape, 3)) + rng.integers(0, 190, 3)
        paths.append(str(folder / f"{number}.png"))
        Image.fromarray(noise.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Tiny vision checkpoints by architecture: vit, dinov2, clip, siglip."""
    return lambda architecture: write_image_checkpoint(tmp_path_factory.mktemp(architecture), architecture)


def write_image_checkpoint(folder: Path, architecture: str) -> Path:
    import transformers as hf

    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    sight = {**size, "image_size": 32, "patch_size": 16}
    text = {**size, "vocab_size": 20, "max_position_embeddings": 8}
    if architecture == "vit":
        hf.ViTModel(hf.ViTConfig(**sight)).save_pretrained(folder)
        hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    elif architecture == "dinov2":
        hf.Dinov2Model(hf.Dinov2Config(**sight)).save_pretrained(folder)
        hf.BitImageProcessorPil(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}).save_pretrained(
            folder
        )
    elif architecture == "clip":
        hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=sight, projection_dim=12)).save_pretrained(folder)
        hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
            folder
        )
    else:
        hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=sight)).save_pretrained(folder)
        hf.SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def catalogue(pictures: list[str]) -> tuple[pa.Table, Fields]:
    """Six items as prepare leaves them; the last one lacks everything, and the fifth has a broken picture."""
    broken = Path(pictures[0]).with_name("broken.png")
    broken.write_bytes(b"no picture")
    paths = [*pictures[:4], str(broken), None]
    table = pa.table(
        {
            ITEM_ID: [f"i{row}" for row in range(6)],
            TEXT: ["red shoe", "a warm blue coat", "the red coat", "red shoe", "light", None],
            IMAGE: pa.array(paths, pa.string()),
            IMAGE_HASH: pa.array([path and hashlib.sha256(path.encode()).hexdigest() for path in paths], pa.string()),
            TOKENS: pa.array([[1], [2, 3], [], [1, 2, 3], None, None], pa.list_(pa.int32())),
            NUMERIC: pa.array([[0.5], [0.0], [-1.0], [0.0], [0.0], [0.0]], vectors_type(1)),
            "sound": pa.array([[1, 2], [3, 4], None, [float("nan"), 1], [5, 6], None], vectors_type(2)),
        }
    )
    fields = Fields(
        text=("title",),
        numeric={"price": NumericField(mean=0, std=1)},
        vectors={"sound": 2},
        tokens={"c=1": 1, "c=2": 2, "c=3": 3},
    )
    return table, fields
