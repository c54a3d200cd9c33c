"""What was fitted on one scope, and how it answers: the channels behind one retriever, here or in another process."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.artifacts import Artifact, open_artifact, verify
from recsys_ray.data.dataset import Targets
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import ChannelConfig, load_channel
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder, QueryEncoder, TowerQueryEncoder
from recsys_ray.retrieval.retriever import Retriever
from recsys_ray.stages.towers import VECTORS_KIND, Towers, load_embedded
from recsys_ray.stages.work import Scope

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
        left_out: Name of each channel that the data has nothing for, and why.
    """

    scope: Scope
    towers: Towers | None
    channels: dict[str, Artifact]
    left_out: dict[str, str] = field(default_factory=dict)

    def retriever(self, fusion: Fusion) -> Retriever:
        """The fitted channels behind one retriever."""
        return _assemble(self._parts(fusion))

    def describe(self, path: Path, fusion: Fusion) -> Path:
        """Write where the parts of `retriever` lie, for `load_retriever` in another process; returns the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._parts(fusion)))
        return path

    def configs(self) -> Configs:
        """The channels' settings with what validation chose in them."""
        adapter: TypeAdapter[ChannelConfig] = TypeAdapter(ChannelConfig)
        return {name: adapter.validate_python(read_header(a.path).config) for name, a in self.channels.items()}

    def without(self, names: Mapping[str, str]) -> "Fit":
        """The same without some channels, each with the reason, and without towers that no other channel needs."""
        kept = {name: artifact for name, artifact in self.channels.items() if name not in names}
        left = replace(self, channels=kept, left_out={**self.left_out, **names})
        return left if need_towers(left.configs()) else replace(left, towers=None)

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


def impersonal(fitted: Fit) -> frozenset[str]:
    """The channels that answer everybody alike."""
    return frozenset(name for name, artifact in fitted.channels.items() if not load_fitted(artifact).reads)


def load_fitted(artifact: Artifact) -> Channel:
    """A channel from its artifact, verified first: FAISS and memory-mapped tables check nothing themselves."""
    verify(artifact)
    return load_channel(artifact.path)


def need_towers(configs: Configs) -> bool:
    """Whether any channel searches the towers' space."""
    return any(reads_towers(config) for config in configs.values())


def reads_towers(config: ChannelConfig) -> bool:
    """Whether a channel searches the towers' space."""
    return isinstance(config, NearestConfig) and config.space == TOWERS


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
