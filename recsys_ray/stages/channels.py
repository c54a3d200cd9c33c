"""Fit the channels: one artifact each, so that a changed setting refits one channel only."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.artifacts import Artifact, open_artifact, verify
from recsys_ray.core.config import result_settings
from recsys_ray.data.dataset import Targets
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import ChannelConfig, fit_channel, load_channel
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.fit_data import FitData, Space, ValidationPairs
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder, QueryEncoder, TowerQueryEncoder
from recsys_ray.retrieval.retriever import Retriever
from recsys_ray.stages.features import Features
from recsys_ray.stages.towers import VECTORS_KIND, Towers, load_embedded
from recsys_ray.stages.work import Data, Scope, Work

VERSION = 2
KIND = "channel"
TOWERS = "towers"

Configs = dict[str, ChannelConfig]


@dataclass(frozen=True)
class Fit:
    """All that was fitted on one scope.

    Attributes:
        scope: What it saw.
        towers: None where no channel needs them.
        channels: Name to channel artifact.
    """

    scope: Scope
    towers: Towers | None
    channels: dict[str, Artifact]

    def retriever(self, fusion: Fusion) -> Retriever:
        """The fitted channels behind one retriever."""
        return _assemble(self._parts(fusion))

    def describe(self, path: Path, fusion: Fusion) -> Path:
        """Write where the parts of `retriever` lie, for `load_retriever` in another process; returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._parts(fusion)))
        return path

    def _parts(self, fusion: Fusion) -> dict[str, Any]:
        trained = self.towers
        return {
            "towers": None if trained is None else [str(trained.artifact.path), str(trained.vectors_artifact.path)],
            "channels": {name: str(artifact.path) for name, artifact in self.channels.items()},
            "fusion": fusion.model_dump(mode="json"),
        }


def load_retriever(path: Path) -> Retriever:
    """The retriever that `Fit.describe` wrote down."""
    return _assemble(json.loads(path.read_text()))


def load_fitted(artifact: Artifact) -> Channel:
    """A channel from its artifact, verified first: FAISS and memory-mapped tables check nothing themselves."""
    verify(artifact)
    return load_channel(artifact.path)


def configured(work: Work) -> Configs:
    """The channels that are switched on."""
    return {name: config for name, config in work.config.channels.items() if config is not None}


def indexed(configs: Configs) -> Configs:
    """The channels that search an index."""
    return {name: config for name, config in configs.items() if isinstance(config, NearestConfig)}


def need_towers(configs: Configs) -> bool:
    """Whether any channel searches the towers' space."""
    return any(_reads_towers(config) for config in configs.values())


def fit(
    work: Work,
    data: Data,
    features: Features,
    towers: Towers | None,
    scope: Scope,
    configs: Configs,
) -> dict[str, Artifact]:
    """Fit each of the given channels on the scope's events.

    Args:
        work: The run.
        data: The dataset.
        features: Frozen content spaces.
        towers: The towers' space; None where no channel reads it.
        scope: Events, and validation to choose settings on.
        configs: Name to settings.
    """
    artifacts = {}
    for name, config in configs.items():
        parents = _parents(data, features, towers, config)

        def write(directory: Path, name: str = name, config: ChannelConfig = config) -> Mapping[str, Any]:
            channel = fit_channel(name, config, _fit_data(work, data, features, towers, scope))
            channel.save(directory)
            return read_header(directory).facts

        settings = {"channel": result_settings(config), "scope": scope.name}
        if isinstance(config, NearestConfig):
            settings["index"] = result_settings(work.config.index)
        label = f"channel {name} on {scope.name}"
        artifacts[name] = work.runner.run(KIND, VERSION, {"name": name, **settings}, parents, write, label=label)
    return artifacts


def chosen_configs(fitted: Fit) -> Configs:
    """The channels' settings with what validation chose in them, for a second fit that has no validation."""
    adapter: TypeAdapter[ChannelConfig] = TypeAdapter(ChannelConfig)
    return {name: adapter.validate_python(read_header(a.path).config) for name, a in fitted.channels.items()}


def queries_of(targets: Targets, user_tokens: IntArray | None) -> Queries:
    """The questions of an evaluation part."""
    tokens = None if user_tokens is None else user_tokens[targets.users]
    return Queries(targets.history, targets.exclude, (None,) * len(targets), tokens)


def query_encoder(towers: Towers) -> TowerQueryEncoder:
    """The towers as an encoder of histories."""
    return TowerQueryEncoder(towers.load(), towers.vectors, towers.space_id, lambda _: None)


def _assemble(parts: Mapping[str, Any]) -> Retriever:
    channels = {name: load_fitted(open_artifact(Path(folder), KIND)) for name, folder in parts["channels"].items()}
    encoders: list[QueryEncoder] = []
    if parts["towers"] is not None:
        towers, vectors = (Path(folder) for folder in parts["towers"])
        encoders.append(
            query_encoder(load_embedded(open_artifact(towers, TOWERS), open_artifact(vectors, VECTORS_KIND)))
        )
    encoders += [_frozen_encoder(c) for c in channels.values() if isinstance(c, NearestChannel) and _is_frozen(c)]
    return Retriever(channels, tuple(encoders), Fusion.parse(parts["fusion"]))


def _is_frozen(channel: NearestChannel) -> bool:
    return channel.config.space != TOWERS


def _frozen_encoder(channel: NearestChannel) -> FrozenQueryEncoder:
    vectors = channel.index.vectors
    return FrozenQueryEncoder(channel.config.space, vectors, channel.space_id, vectors.shape[1], lambda _: None)


def _reads_towers(config: ChannelConfig) -> bool:
    return isinstance(config, NearestConfig) and config.space == TOWERS


def _parents(data: Data, features: Features, towers: Towers | None, config: ChannelConfig) -> dict[str, Artifact]:
    parents = {"dataset": data.artifact}
    if towers is not None and _reads_towers(config):
        parents |= {"towers": towers.artifact, "vectors": towers.vectors_artifact}
    elif isinstance(config, ContentConfig | NearestConfig) and config.space is not None:
        parents["features"] = features.artifact
    return parents


def _fit_data(work: Work, data: Data, features: Features, towers: Towers | None, scope: Scope) -> FitData:
    spaces = {
        modality: _content_space(features.backbone_id(modality), table.vectors, work.config.index.max_queries)
        for modality, table in features.tables.items()
    }
    if towers is not None:
        spaces[TOWERS] = Space(towers.space_id, towers.vectors, _held_out(work, data, towers, scope))
    validation = scope.validation
    pairs = None if validation is None else ValidationPairs(validation.history, validation.exclude, validation.items)
    return FitData(scope.events, data.dataset.items, data.dataset.fields, spaces, pairs, work.config.index)


def _content_space(space_id: str, vectors: FloatArray, max_queries: int) -> Space:
    """Frozen vectors at unit length; the items themselves are the questions that its index is measured with."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return Space(space_id, unit, unit[np.linspace(0, len(unit) - 1, min(max_queries, len(unit))).astype(np.int64)])


def _held_out(work: Work, data: Data, towers: Towers, scope: Scope) -> FloatArray:
    """User vectors of histories as they will come: those of validation, else those of all users of the scope."""
    count, tokens = work.config.index.max_queries, data.user_tokens
    if scope.validation is not None and len(scope.validation):
        users, histories = scope.validation.users, scope.validation.history
    else:
        users = np.flatnonzero(np.diff(scope.events.offsets))
        histories = scope.events.histories.take(users)
    picked = np.linspace(0, len(users) - 1, min(count, len(users))).astype(np.int64)
    queries = Queries.of_histories(histories.take(picked))
    if tokens is not None:
        queries = Queries(queries.history, queries.exclude, queries.texts, tokens[users[picked]])
    return query_encoder(towers).encode(queries)[towers.space_id]
