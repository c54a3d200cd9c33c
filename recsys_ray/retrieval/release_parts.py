"""What a release is made of, and how its directory is filled.

::

    release.json      spaces of frozen content, order of the channels
    items.parquet     item ids in row order, original catalogue fields
    fields.json       what the fields are used for
    fusion.json       the finished fusion
    histories.parquet users, their items and attributes by external ids
    channels/<name>/  one folder a channel
    towers/           weights, settings and backbones, where there are towers
    backbones/<modality>/  backbones of frozen spaces that the towers do not bring
    query_text/       what else can encode the texts of questions, and how near it is to the backbone
    query_history/    the user tower as a graph, where it can be exported
    settings.json     the settings of the run that made it, where they are given
    canary.json       questions and what it answered when it was published
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core import schema
from recsys_ray.core.artifacts import link_or_copy
from recsys_ray.core.errors import ArtifactError, SpaceError
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels.content import ContentChannel
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.fusion import Fusion

KIND = "release"
RELEASE_FILE = "release.json"
FUSION_FILE = "fusion.json"
SETTINGS_FILE = "settings.json"
CHANNELS, TOWERS, BACKBONES = "channels", "towers", "backbones"
QUERY_TEXT, QUERY_HISTORY = "query_text", "query_history"


@dataclass(frozen=True)
class FrozenSpace:
    """The space of a frozen content backbone.

    Attributes:
        id: The backbone's id, which names the space.
        dim: Length of its vectors.
        modality: "text" or "image".
    """

    id: str
    dim: int
    modality: str


@dataclass(frozen=True)
class ReleaseParts:
    """All that a release is made of.

    Attributes:
        items: The catalogue in row order.
        fields: What its fields are used for.
        channels: In the order they are shown in.
        fusion: With a weight for each channel.
        histories: The file that `online.history.write_histories` wrote.
        towers: The folder that `save_towers` wrote, None without towers.
        towers_space: The space id of the towers.
        frozen: The spaces of frozen content that channels search or mix in.
        backbones: Modality to a folder that a backbone's `save` wrote, where the towers do not bring it.
        settings: Of the run that made it, for people.
        query_text: The folder that `encoders.onnx_export.export_text` filled, None without.
        query_history: The folder with what `encoders.onnx_user.export_user_tower` wrote, None without.
        exposures: Kinds of events that say only what was shown; live ones are no part of a history.
    """

    items: pa.Table
    fields: Fields
    channels: tuple[Channel, ...]
    fusion: Fusion
    histories: Path
    towers: Path | None = None
    towers_space: str | None = None
    frozen: tuple[FrozenSpace, ...] = ()
    backbones: Mapping[str, Path] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    query_text: Path | None = None
    query_history: Path | None = None
    exposures: tuple[str, ...] = ()


def write_parts(directory: Path, parts: ReleaseParts) -> dict[str, Any]:
    """Fill an empty directory with all but the canary; returns the release's summary.

    Raises:
        ArtifactError: When the fusion does not fit the channels.
        SpaceError: When a channel searches a space that nothing in the release encodes queries for.
    """
    names = [channel.name for channel in parts.channels]
    if set(names) - set(parts.fusion.weights):
        raise ArtifactError(f"the fusion has weights for {sorted(parts.fusion.weights)}, the channels are {names}")
    require_spaces(parts.channels, parts.towers_space, parts.frozen)
    original = [name for name in parts.items.column_names if not name.startswith("_")]
    pq.write_table(parts.items.select(original), directory / schema.ITEMS_FILE)
    parts.fields.save(directory / schema.FIELDS_FILE)
    parts.fusion.save(directory / FUSION_FILE)
    link_or_copy(parts.histories, directory / "histories.parquet")
    for channel in parts.channels:
        target = directory / CHANNELS / channel.name
        target.mkdir(parents=True)
        channel.save(target)
    if parts.towers is not None:
        link_or_copy(parts.towers, directory / TOWERS)
    for modality, folder in parts.backbones.items():
        link_or_copy(folder, directory / BACKBONES / modality)
    for source, name in ((parts.query_text, QUERY_TEXT), (parts.query_history, QUERY_HISTORY)):
        if source is not None:
            link_or_copy(source, directory / name)
    if parts.settings:
        (directory / SETTINGS_FILE).write_text(json.dumps(parts.settings, indent=1, default=str) + "\n")
    settings = {
        "channels": names,
        "towers_space": parts.towers_space,
        "frozen": [asdict(one) for one in parts.frozen],
        "exposures": parts.exposures,
    }
    (directory / RELEASE_FILE).write_text(json.dumps(settings, indent=1) + "\n")
    return {"items": parts.items.num_rows, "channels": names, "spaces": sorted(_known(parts))}


def backbone_folders(directory: Path) -> dict[str, Path]:
    """Modality name to the folder of its backbone, in a release or a towers artifact."""
    parents = (directory / BACKBONES, directory / TOWERS / BACKBONES)
    return {folder.name: folder for parent in parents if parent.is_dir() for folder in sorted(parent.iterdir())}


def require_spaces(channels: tuple[Channel, ...], towers_space: str | None, frozen: tuple[FrozenSpace, ...]) -> None:
    """Check that every vector a channel holds lives in a space that the release encodes queries for.

    Raises:
        SpaceError: Naming the channel and both spaces.
    """
    known = {one.id for one in frozen} | ({towers_space} if towers_space else set())
    for channel in channels:
        space = space_of(channel)
        if space is not None and space not in known:
            have = ", ".join(sorted(known)) or "none"
            raise SpaceError(f"channel {channel.name!r} holds vectors of space {space}; queries are encoded in: {have}")
    if towers_space is not None and towers_space not in {space_of(channel) for channel in channels}:
        raise SpaceError(f"no channel searches the towers' space {towers_space}: their index is of another training")


def space_of(channel: Channel) -> str | None:
    """The space whose vectors a channel holds, None when it holds none."""
    if isinstance(channel, NearestChannel):
        return channel.space_id
    if isinstance(channel, ContentChannel) and channel.neural is not None:
        return channel.neural.space_id
    return None


def _known(parts: ReleaseParts) -> set[str]:
    return {one.id for one in parts.frozen} | ({parts.towers_space} if parts.towers_space else set())
