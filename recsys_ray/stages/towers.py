"""Train the towers, then embed the catalogue with them."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import override, result_settings
from recsys_ray.embedding.encode import embed_items, read_vectors, write_vectors
from recsys_ray.embedding.on_ray import Pool, embed_items_on_ray
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import build_item_inputs, token_words
from recsys_ray.encoders.modality import TEXT
from recsys_ray.encoders.two_tower import TwoTower, build, load_towers, read_space_id, save_towers, trained_backbones
from recsys_ray.stages.features import Features, digest_backbones, frozen_configs
from recsys_ray.stages.work import Data, Scope, Work
from recsys_ray.training.data import TrainInput, Validation
from recsys_ray.training.exposed import shown_at
from recsys_ray.training.fit import fit_in_process
from recsys_ray.training.on_ray import fit_on_ray
from recsys_ray.training.progress import TrainResult

TRAIN_VERSION = 4
EMBED_VERSION = 2
RECORDS_FILE = "training.json"
VECTORS_KIND = "vectors"
VECTORS_FILE = "vectors.parquet"


@dataclass(frozen=True)
class Towers:
    """Trained towers and what they make of the catalogue.

    Attributes:
        artifact: The towers artifact.
        vectors: (N, D) item vectors.
        vectors_artifact: Where they come from.
        space_id: The space of both.
    """

    artifact: Artifact
    vectors: FloatArray
    vectors_artifact: Artifact
    space_id: str

    def load(self) -> TwoTower:
        """The model, ready to encode."""
        return load_towers(self.artifact.path)


def train(work: Work, data: Data, features: Features, scope: Scope) -> Artifact:
    """Train on the scope's events; its validation says when to stop, else `scope.epochs` does."""
    config = work.config

    def write(directory: Path) -> Mapping[str, Any]:
        model, train_input = begin(work, data, features, scope)
        result = _fit(work, model, train_input, scope, key)
        model.load_state_dict(result.weights)
        frozen = {modality: load_backbone(settings) for modality, settings in frozen_configs(work, data).items()}
        space_id = save_towers(directory, model, frozen)
        records = [asdict(record) for record in result.records]
        (directory / RECORDS_FILE).write_text(json.dumps(records, indent=1) + "\n")
        return {"space_id": space_id, "best_epoch": result.best_epoch, "validation": result.validation}

    settings = {
        "model": result_settings(config.model),
        "training": result_settings(config.training),
        "scope": scope.name,
        "epochs": scope.epochs,
    }
    parents = {"dataset": data.artifact, "features": features.artifact}
    modalities = (config.model.text, config.model.image)
    digest = digest_backbones(one for one in modalities if one is not None and one.trained)
    key = work.runner.key("towers", TRAIN_VERSION, settings, parents, digest)
    return work.runner.run("towers", TRAIN_VERSION, settings, parents, write, f"train on {scope.name}", digest)


def begin(work: Work, data: Data, features: Features, scope: Scope) -> tuple[TwoTower, TrainInput]:
    """Towers with their first weights, and what they are trained on."""
    config = work.config
    torch.manual_seed(config.training.seed)
    dims = {modality: table.vectors.shape[1] for modality, table in features.tables.items()}
    model = build(_suited(config.model, scope), data.dataset.fields, len(data.dataset.item_ids), dims)
    inputs = item_inputs(work, data, features, model, scope)
    shown = shown_at(scope.events, data.dataset.exposures) if config.training.exposed_negatives else None
    words = token_words(data.dataset.items, trained_backbones(model)[TEXT]) if _texts_change(model) else None
    return model, TrainInput(inputs, scope.events, _validation(scope), data.user_tokens, shown, words)


def embed(work: Work, data: Data, features: Features, towers: Artifact, scope: Scope) -> Towers:
    """Embed the catalogue with the trained item tower."""

    def write(directory: Path) -> Mapping[str, Any]:
        model = load_towers(towers.path)
        vectors = _embed(work, towers, model, item_inputs(work, data, features, model, scope))
        write_vectors(directory / VECTORS_FILE, data.dataset.item_ids.ids, vectors)
        return {"space_id": read_space_id(towers.path), "items": len(vectors), "dim": vectors.shape[1]}

    parents = {"dataset": data.artifact, "features": features.artifact, "towers": towers}
    return load_embedded(
        towers, work.runner.run(VECTORS_KIND, EMBED_VERSION, {}, parents, write, label=f"embed for {scope.name}")
    )


def load_embedded(towers: Artifact, vectors_artifact: Artifact) -> Towers:
    """Towers with the vectors that were embedded with them."""
    _, vectors = read_vectors(vectors_artifact.file(VECTORS_FILE))
    return Towers(towers, vectors, vectors_artifact, str(vectors_artifact.summary["space_id"]))


def item_inputs(work: Work, data: Data, features: Features, model: TwoTower, scope: Scope) -> ItemInputs:
    """What the item tower reads of the whole catalogue; an id says something only where there is an event of it."""
    dataset = data.dataset
    known = scope.events.item_counts() > 0
    id_rows = np.where(known, np.arange(len(known), dtype=np.int64), -1)
    return build_item_inputs(
        dataset.items, dataset.fields, work.config.model, features.tables, trained_backbones(model), id_rows
    )


def _fit(work: Work, model: TwoTower, data: TrainInput, scope: Scope, key: str) -> TrainResult:
    """Train where the settings say. A run that was cut goes on from its checkpoints, which are kept under its key."""
    config, directory = work.config.training, Path(work.config.storage).absolute() / "training" / key
    watch = None if work.watch is None else partial(work.watch, scope.name)
    if config.workers == 0:
        result = fit_in_process(model, data, config, directory, scope.epochs, watch)
    else:
        work.need_ray()
        result = fit_on_ray(model, data, config, directory, scope.epochs, watch)
    shutil.rmtree(directory, ignore_errors=True)
    return result


def _embed(work: Work, towers: Artifact, model: TwoTower, inputs: ItemInputs) -> FloatArray:
    settings = work.config.embedding
    if len(inputs) <= settings.ray_above_items:
        return embed_items(model, inputs, settings.batch_size)
    work.need_ray()
    pool = Pool(settings.actors, settings.cpus, settings.gpus)
    scratch = Path(work.config.storage) / "scratch"
    return embed_items_on_ray(towers.path, model.config.width, inputs, scratch, settings.batch_size, pool)


def _texts_change(model: TwoTower) -> bool:
    return model.config.text is not None and model.config.text.augmented


def _suited(model: TwoTowerConfig, scope: Scope) -> TwoTowerConfig:
    """The model's settings with those decided that follow from the events."""
    lengths = scope.events.histories.lengths
    user = model.user.suited(float(lengths[lengths > 0].mean()) if lengths.any() else 0.0)
    return override(model, {"user": user.model_dump()})


def _validation(scope: Scope) -> Validation | None:
    targets = scope.validation
    if targets is None or not len(targets):
        return None
    return Validation(targets.users, targets.history, targets.exclude, targets.items)
