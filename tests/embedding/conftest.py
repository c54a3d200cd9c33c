"""Shapes and types in encoders are checked while these tests run; tiny checkpoints and a catalogue on disk."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pytest
from jaxtyping import install_import_hook
from PIL import Image

from recsys_ray.core import schema

if TYPE_CHECKING:
    from recsys_ray.encoders.config import ImageConfig, TextConfig

# Before any test module imports the package, else the hook comes too late.
install_import_hook("recsys_ray.encoders", "beartype.beartype")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "coat", "warm", "light", "big", "small"]
NUM_ITEMS = 300


@pytest.fixture(scope="session")
def text_config(tmp_path_factory: pytest.TempPathFactory) -> "TextConfig":
    """A tiny BERT."""
    from transformers import BertConfig, BertModel, BertTokenizer

    from recsys_ray.encoders.config import TextConfig

    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **size)).save_pretrained(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    return TextConfig(backbone=str(folder), batch_size=16)


@pytest.fixture(scope="session")
def image_config(tmp_path_factory: pytest.TempPathFactory) -> "ImageConfig":
    """A tiny ViT."""
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    from recsys_ray.encoders.config import ImageConfig

    folder = tmp_path_factory.mktemp("vit")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    ViTModel(ViTConfig(image_size=32, patch_size=16, **size)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return ImageConfig(backbone=str(folder), batch_size=16)


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """Items whose texts repeat; some have no text, some no picture, and two have a broken one."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    texts: list[str | None] = [" ".join(rng.choice(WORDS[5:], rng.integers(1, 9))) for _ in range(NUM_ITEMS)]
    texts[7] = None
    paths: list[str | None] = [None] * NUM_ITEMS
    for row in range(0, NUM_ITEMS, 4):
        paths[row] = str(folder / f"{row}.png")
        Image.fromarray(rng.integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(str(paths[row]))
    Path(str(paths[0])).write_bytes(b"broken")
    Path(str(paths[4])).unlink()
    hashes = [path and hashlib.sha256(path.encode()).hexdigest() for path in paths]
    return pa.table(
        {
            schema.ITEM_ID: [f"i{row}" for row in range(NUM_ITEMS)],
            schema.TEXT: texts,
            schema.IMAGE: pa.array(paths, pa.string()),
            schema.IMAGE_HASH: pa.array(hashes, pa.string()),
        }
    )
