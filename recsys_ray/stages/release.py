"""Publish: all that serving needs, in one artifact."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from recsys_ray.core import schema
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.config import result_settings
from recsys_ray.core.errors import MissingExtraError, NotApplicable
from recsys_ray.core.progress import say
from recsys_ray.data.dataset import load_kinds
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.modality import TEXT
from recsys_ray.encoders.onnx_export import export_text
from recsys_ray.encoders.onnx_user import USER_TOWER_FILE, export_user_tower
from recsys_ray.encoders.two_tower import saved_backbones
from recsys_ray.online.history import HISTORIES_FILE, write_histories
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import ReleaseParts, write_release
from recsys_ray.retrieval.release_parts import QUERY_HISTORY, QUERY_TEXT, FrozenSpace, space_of
from recsys_ray.stages.features import Features, frozen_configs
from recsys_ray.stages.fitted import Fit, load_fitted
from recsys_ray.stages.fusion import FUSION_FILE, exploring
from recsys_ray.stages.work import Data, Work

VERSION = 4
KIND = "release"


def publish(work: Work, data: Data, features: Features, served: Fit, fusion: Artifact, report: Artifact) -> Artifact:
    """Make a release of what was fitted for serving; histories are those of all events, whatever it was fitted on."""

    def write(directory: Path) -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as scratch:
            # What is new is so by the events that the release was fitted on.
            counts = served.scope.events.item_counts()
            merged = exploring(Fusion.load(fusion.file(FUSION_FILE)), work.config.fusion, counts)
            parts = _parts(work, data, features, served, merged, Path(scratch))
            text, history = _query_text(parts, Path(scratch)), _query_history(served, Path(scratch))
            summary = write_release(directory, replace(parts, query_text=text, query_history=history))
        return {**summary, "fitted_on": served.scope.name, "measured": report.summary["fused"]}

    parents = {"dataset": data.artifact, "fusion": fusion, "report": report, **served.channels}
    return work.runner.run(KIND, VERSION, {}, parents, write, label="publish")


def _parts(work: Work, data: Data, features: Features, served: Fit, fusion: Fusion, scratch: Path) -> ReleaseParts:
    dataset, towers = data.dataset, served.towers
    channels = tuple(load_fitted(artifact) for artifact in served.channels.values())
    used = {space_of(channel) for channel in channels}
    frozen = tuple(
        FrozenSpace(features.backbone_id(modality), table.vectors.shape[1], modality)
        for modality, table in features.tables.items()
        if features.backbone_id(modality) in used
    )
    histories = scratch / HISTORIES_FILE
    events = dataset.events
    write_histories(
        histories,
        dataset.user_ids.ids,
        events.histories,
        dataset.item_ids,
        data.user_tokens,
        times_us=events.timestamps if events.has_real_time else None,
        kinds=load_kinds(data.artifact),
    )
    return ReleaseParts(
        items=dataset.items,
        fields=dataset.fields,
        channels=channels,
        fusion=fusion.only(served.channels),
        histories=histories,
        towers=None if towers is None else towers.artifact.path,
        towers_space=None if towers is None else towers.space_id,
        frozen=frozen,
        settings=result_settings(work.config),
        exposures=work.config.data.exposures,
        backbones={} if towers is not None else _saved_backbones(work, data, [one.modality for one in frozen], scratch),
    )


def _query_text(parts: ReleaseParts, scratch: Path) -> Path | None:
    """What encodes the texts of questions faster than the backbone; None, said aloud, where there is no such thing."""
    folder = parts.backbones.get(TEXT) if parts.towers is None else saved_backbones(parts.towers).get(TEXT)
    if folder is None or schema.TEXT not in parts.items.column_names:
        return None
    target = scratch / QUERY_TEXT
    target.mkdir()
    texts = [text for text in parts.items.column(schema.TEXT).to_pylist() if text]
    try:
        export_text(Path(folder), texts, target)
    except (NotApplicable, MissingExtraError) as error:
        say(f"{error}; questions are encoded by the backbone in torch")
        return None
    return target


def _query_history(served: Fit, scratch: Path) -> Path | None:
    """What reads histories faster than the user tower in torch; None, said aloud, where there is no such thing."""
    if served.towers is None:
        return None
    target = scratch / QUERY_HISTORY
    target.mkdir()
    try:
        export_user_tower(served.towers.load(), target / USER_TOWER_FILE)
    except (NotApplicable, MissingExtraError) as error:
        say(f"{error}; histories are encoded by the tower in torch")
        return None
    return target


def _saved_backbones(work: Work, data: Data, modalities: list[str], scratch: Path) -> dict[str, Path]:
    """The backbones of frozen spaces, where no towers bring them."""
    folders = {}
    for modality, config in frozen_configs(work, data).items():
        if modality in modalities:
            folders[modality] = scratch / modality
            load_backbone(config).save(folders[modality])
    return folders
