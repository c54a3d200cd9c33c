"""`RunConfig`: one field a stage. Load it from a file, change it by dotted path, hand it to `recsys_ray.run`."""

import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from recsys_ray.core.cluster import RayConfig
from recsys_ray.core.config import Config, execution, override
from recsys_ray.core.errors import ConfigError
from recsys_ray.data.sources import DataConfig
from recsys_ray.data.split import SplitConfig
from recsys_ray.embedding.config import EmbeddingConfig
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.evaluation.replay import FUSED
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.index.spec import IndexConfig
from recsys_ray.retrieval.channel_tuning import ChannelTuningConfig
from recsys_ray.retrieval.channels import ChannelConfig
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.item_knn import ItemKnnConfig
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.channels.trending import TrendingConfig
from recsys_ray.retrieval.fusion import FusionConfig
from recsys_ray.training.config import TrainingConfig

_CHANNEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


class PublishConfig(Config):
    """What a release is fitted on.

    Attributes:
        fit_on: "all" events (epochs and fusion weights as validation found them), "refit" on train and validation, or
            "strict" on train alone, which serves exactly what the report measured.
    """

    fit_on: Literal["all", "refit", "strict"] = "all"


def _channels() -> dict[str, ChannelConfig | None]:
    return {
        "nearest": NearestConfig(),
        "co_visitation": CoVisitationConfig(),
        "item_knn": ItemKnnConfig(),
        "content": ContentConfig(),
        "popularity": PopularityConfig(),
        "trending": TrendingConfig(),
    }


class RunConfig(Config):
    """A whole run.

    Attributes:
        name: A name for people, in the report.
        storage: Folder of artifacts, report and release.
        data: Raw files.
        split: Training, validation, test.
        model: The two towers and their modalities.
        training: How the towers are trained.
        embedding: Where features and item vectors are computed.
        index: How the ANN index is chosen.
        channels: Name to a channel's settings; null leaves a channel out. Without "nearest" no towers are trained.
        channel_tuning: How the settings that channels search are chosen.
        fusion: How the channels' lists are merged.
        evaluation: How the report is computed.
        publish: What the release is fitted on.
        ray: Which cluster.
    """

    name: str = execution("run")
    storage: str = execution("recsys-storage")
    data: DataConfig = DataConfig()
    split: SplitConfig = SplitConfig()
    model: TwoTowerConfig = TwoTowerConfig()
    training: TrainingConfig = TrainingConfig()
    embedding: EmbeddingConfig = EmbeddingConfig()
    index: IndexConfig = IndexConfig()
    channels: dict[str, ChannelConfig | None] = Field(default_factory=_channels)
    channel_tuning: ChannelTuningConfig = ChannelTuningConfig()
    fusion: FusionConfig = FusionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    publish: PublishConfig = PublishConfig()
    ray: RayConfig = RayConfig()

    @field_validator("channels")
    @classmethod
    def _usable_channels(cls, channels: dict[str, ChannelConfig | None]) -> dict[str, ChannelConfig | None]:
        wrong = [name for name in channels if not _CHANNEL_NAME.fullmatch(name) or name == FUSED]
        if wrong:
            raise ValueError(f"names of letters, digits, '_' and '-' (a folder each) other than {FUSED!r}, not {wrong}")
        if not any(channels.values()):
            raise ValueError("at least one channel that is not null")
        return channels

    @model_validator(mode="after")
    def _exposures_are_named(self) -> "RunConfig":
        if self.training.exposed_negatives and not self.data.exposures:
            # Not a ValueError: what came would be the whole configuration.
            hint = "Name in data.exposures the kinds of events that say what was shown."
            raise ConfigError("training.exposed_negatives", self.training.exposed_negatives, "0 here", hint)
        return self


def load_config(path: Path, base: RunConfig) -> RunConfig:
    """Settings of a YAML file over a base; the file may hold any part of them.

    Raises:
        ConfigError: When the file is no YAML mapping or a setting is wrong.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--config", str(path), "a readable YAML file", str(error)) from None
    if not isinstance(values, dict):
        raise ConfigError("--config", str(path), "a YAML mapping of settings, as `recsys-ray config` prints")
    return override(base, dict(_leaves(values, base)))


def dump_config(config: RunConfig) -> str:
    """All settings as YAML; `load_config` reads it back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _leaves(values: dict[str, Any], node: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted paths, as deep as `node` has settings; channels are merged by name."""
    leaves: list[tuple[str, Any]] = []
    for name, value in values.items():
        child = getattr(node, name, None) if isinstance(node, Config) else node.get(name)
        if isinstance(value, dict) and _has_settings(child):
            leaves += _leaves(value, child, f"{prefix}{name}.")
        else:
            leaves.append((f"{prefix}{name}", value))
    return leaves


def _has_settings(node: Any) -> bool:
    return isinstance(node, Config) or (isinstance(node, dict) and any(isinstance(v, Config) for v in node.values()))
