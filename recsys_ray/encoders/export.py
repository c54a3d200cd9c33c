"""Backbones as plain Hugging Face directories, for whoever does not use recsys_ray."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_ray.core.artifacts import link_or_copy
from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.checkpoint import read_facts, write_checkpoint
from recsys_ray.encoders.image import HubVision, ImageBackbone, load_image_backbone
from recsys_ray.encoders.modality import TEXT
from recsys_ray.encoders.text import TextBackbone, load_text_backbone

_NO_LIMIT_BYTES = 1 << 60
_POOLING, _NORMALIZE = "1_Pooling", "2_Normalize"


@dataclass(frozen=True)
class Exported:
    """One exported backbone.

    Attributes:
        modality: "text" or "image".
        path: Its directory.
        loads_with: What loads it, for people.
    """

    modality: str
    path: Path
    loads_with: str


@dataclass(frozen=True)
class _OneFile:
    """A model whose weights are not split, however large."""

    model: Any

    def save_pretrained(self, directory: Path) -> None:
        self.model.save_pretrained(directory, max_shard_size=_NO_LIMIT_BYTES)


def export_backbones(folders: Mapping[str, Path], target: Path) -> list[Exported]:
    """Write each saved backbone, trained or frozen, into `target`/<modality>: float32 weights in one safetensors file.

    Args:
        folders: Modality name to a folder that `Backbone.save` wrote.
        target: A folder that is not there yet, or empty.

    Raises:
        ConfigError: When `target` holds something already.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError("--to", str(target), "a folder that is new or empty")
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    exported = [_export(modality, folder, aside / modality) for modality, folder in sorted(folders.items())]
    if target.is_dir():
        target.rmdir()
    aside.rename(target)
    return [Exported(modality, target / modality, how) for modality, how in zip(sorted(folders), exported, strict=True)]


def _export(modality: str, folder: Path, target: Path) -> str:
    target.mkdir()
    if modality == TEXT:
        return _export_text(load_text_backbone(str(folder)), folder, target)
    return _export_image(load_image_backbone(str(folder)), folder, target)


def _export_text(backbone: TextBackbone, folder: Path, target: Path) -> str:
    # As `preprocess` does; the checkpoint's own side and limit may be others.
    backbone.tokenizer.padding_side = "right"
    backbone.tokenizer.model_max_length = backbone.max_tokens
    write_checkpoint(target, None, (_OneFile(backbone.model), backbone.tokenizer), read_facts(str(folder)))
    _write_sentence_transformer(backbone, target)
    return "transformers AutoModel, sentence_transformers SentenceTransformer"


def _write_sentence_transformer(backbone: TextBackbone, target: Path) -> None:
    """The files by which sentence-transformers knows limit, pooling and normalisation: the format of its version 2."""
    modules = (("", "Transformer"), (_POOLING, "Pooling"), (_NORMALIZE, "Normalize"))
    listed = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{name}"}
        for place, (path, name) in enumerate(modules)
    ]
    _write(target / "modules.json", listed)
    _write(target / "sentence_bert_config.json", {"max_seq_length": backbone.max_tokens, "do_lower_case": False})
    for folder in (_POOLING, _NORMALIZE):
        (target / folder).mkdir()
    pooling = {
        "word_embedding_dimension": backbone.dim,
        "pooling_mode_cls_token": backbone.pooling == "cls",
        "pooling_mode_mean_tokens": backbone.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    _write(target / _POOLING / "config.json", pooling)


def _export_image(backbone: ImageBackbone, folder: Path, target: Path) -> str:
    if not isinstance(backbone.features, HubVision):
        link_or_copy(folder, target)
        return f"recsys_ray's load_image_backbone alone: transformers has no {backbone.name}"
    parts = (_OneFile(backbone.features.model), backbone.processor)
    write_checkpoint(target, None, parts, read_facts(str(folder)))
    return "transformers AutoModel and AutoImageProcessor"


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
