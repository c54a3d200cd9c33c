"""Features: what the frozen backbones make of each item's text and picture, aligned with the catalogue."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recsys_ray.core import schema
from recsys_ray.core.artifacts import Artifact, digest_files
from recsys_ray.core.config import result_settings
from recsys_ray.embedding.encode import compute_features, read_vectors, write_vectors
from recsys_ray.embedding.on_ray import Pool, compute_features_on_ray
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import ImageConfig, TextConfig
from recsys_ray.encoders.item_inputs import FeatureTable
from recsys_ray.encoders.modality import IMAGE, TEXT, Backbone
from recsys_ray.stages.work import Data, Work

VERSION = 2
_COLUMNS = {TEXT: schema.TEXT, IMAGE: schema.IMAGE}


@dataclass(frozen=True)
class Features:
    """The features artifact, read.

    Attributes:
        artifact: Its manifest tells the backbone ids.
        tables: Modality name to vectors and who has one.
    """

    artifact: Artifact
    tables: dict[str, FeatureTable]

    def backbone_id(self, modality: str) -> str:
        """The id of the backbone behind a modality's features."""
        return str(self.artifact.summary["backbones"][modality])


def features(work: Work, data: Data) -> Features:
    """Encode each modality that is configured frozen and that any item has; only unseen contents are encoded."""
    configs = frozen_configs(work, data)

    def write(directory: Path) -> Mapping[str, Any]:
        backbones, present = {}, {}
        for modality, config in configs.items():
            backbone = load_backbone(config)
            table = _encode(work, data, config, backbone)
            write_vectors(directory / f"{modality}.parquet", data.dataset.item_ids.ids, table.vectors)
            np.save(directory / f"{modality}.present.npy", table.present)
            backbones[modality], present[modality] = backbone.id, int(table.present.sum())
        return {"backbones": backbones, "present": present}

    settings = {modality: result_settings(config) for modality, config in configs.items()}
    parents = {"dataset": data.artifact}
    artifact = work.runner.run("features", VERSION, settings, parents, write, inputs=digest_backbones(configs.values()))
    tables = {modality: _read(artifact, modality) for modality in configs}
    return Features(artifact, tables)


def frozen_configs(work: Work, data: Data) -> dict[str, TextConfig | ImageConfig]:
    """The modalities whose features are computed once: configured, frozen, and some item has them."""
    model = work.config.model
    wanted: dict[str, TextConfig | ImageConfig | None] = {TEXT: model.text, IMAGE: model.image}
    return {
        modality: config
        for modality, config in wanted.items()
        if config is not None and config.mode == "frozen" and _any_item_has(data, modality)
    }


def digest_backbones(configs: Iterable[TextConfig | ImageConfig | None]) -> str:
    """Digest of the backbones that are folders: weights that were trained on at the same path are other weights.

    Empty where all are packages or hub ids.
    """
    paths = [Path(config.backbone).expanduser() for config in configs if config is not None]
    folders = [path for path in paths if path.is_dir()]
    return digest_files(folders) if folders else ""


def _any_item_has(data: Data, modality: str) -> bool:
    column = data.dataset.items.column(_COLUMNS[modality])
    return bool(column.null_count < len(column))


def _encode(work: Work, data: Data, config: TextConfig | ImageConfig, backbone: Backbone) -> FeatureTable:
    modality = TEXT if isinstance(config, TextConfig) else IMAGE
    cache, settings = Path(work.config.storage) / "cache", work.config.embedding
    if data.dataset.items.num_rows <= settings.ray_above_items:
        return compute_features(data.dataset.items, modality, backbone, cache, config.batch_size)
    work.need_ray()
    pool = Pool(settings.actors, settings.cpus, settings.gpus)
    return compute_features_on_ray(data.dataset.items, config, backbone, cache, pool)


def _read(artifact: Artifact, modality: str) -> FeatureTable:
    _, vectors = read_vectors(artifact.file(f"{modality}.parquet"))
    return FeatureTable(vectors, np.load(artifact.file(f"{modality}.present.npy")))
