"""Reading a release's directory, whole or in parts: for `load_release`, and for replicas that hold one part each."""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_ray.core.artifacts import MANIFEST, Artifact, open_artifact, verify
from recsys_ray.core.errors import ArtifactError, SpaceError
from recsys_ray.index.shard import Shard
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import load_channel, nearest
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.query_encoder import (
    BackboneLoader,
    FrozenQueryEncoder,
    QueryEncoder,
    TextLoader,
    TowerQueryEncoder,
    backbone_itself,
)
from recsys_ray.retrieval.release_parts import (
    CHANNELS,
    KIND,
    QUERY_HISTORY,
    RELEASE_FILE,
    TOWERS,
    FrozenSpace,
    backbone_folders,
    require_spaces,
)
from recsys_ray.retrieval.release_pointer import POINTER, read_pointer
from recsys_ray.retrieval.remote import fetch, is_uri

if TYPE_CHECKING:
    from recsys_ray.encoders.modality import Backbone
    from recsys_ray.encoders.onnx_user import OnnxUserTower


def resolve_release(path: str | Path) -> Path:
    """The directory of a release: the path itself, or of a folder of releases or a run's storage the one to serve.

    That is the active release where one was ever activated, else the one that a run's storage points to, else the
    newest. Links are followed, so that the answer stays the same release when the storage points to another one later.
    From other storage (``s3://…``, see `retrieval.remote`) the release itself, or the newest of a folder, is fetched.

    Raises:
        ArtifactError: When there is none, or it cannot be fetched.
        ConfigError: When a URI names no storage that pyarrow knows.
    """
    if is_uri(path):
        return fetch(str(path))
    path = Path(path)
    if (path / MANIFEST).is_file():
        return path.resolve()
    folder = releases_folder(path)
    active = active_release(folder)
    if active is not None:
        return active
    if (path / KIND / MANIFEST).is_file():
        return (path / KIND).resolve()
    found = [open_artifact(inner.parent, KIND) for inner in folder.glob(f"[!.]*/{MANIFEST}")]
    if not found:
        raise ArtifactError(f"{path} holds no release: give a release's directory, or the storage of a finished run")
    return max(found, key=lambda artifact: (artifact.manifest.created_at, artifact.id)).path


def releases_folder(path: str | Path) -> Path:
    """Where releases lie beside each other: of a run's storage, of one of them, or the path itself."""
    path = Path(path)
    for release in (path, path / KIND):
        if (release / MANIFEST).is_file():
            return release.resolve().parent
    return (path / KIND if (path / KIND).is_dir() else path).resolve()


def active_release(folder: Path) -> Path | None:
    """The directory of the release that a folder's pointer names; None where there is no pointer.

    Raises:
        ArtifactError: When the pointer cannot be read, or what it names is not there.
    """
    pointer = read_pointer(folder)
    if pointer is None:
        return None
    if not (folder / pointer.id / MANIFEST).is_file():
        raise ArtifactError(f"{folder / POINTER} names release {pointer.id}, which is not there: activate another one")
    return folder / pointer.id


def open_release(path: str | Path) -> Artifact:
    """Find a release and check the hash of each of its files.

    Raises:
        ArtifactError: When there is none, or a file is missing or changed.
    """
    artifact = open_artifact(resolve_release(path), KIND)
    verify(artifact)
    return artifact


def channel_names(artifact: Artifact) -> list[str]:
    """The release's channels, in order."""
    names: list[str] = read_settings(artifact)["channels"]
    return names


def load_release_channel(artifact: Artifact, name: str) -> Channel:
    """One channel of an opened release.

    Raises:
        ArtifactError: When the release has no such channel, or it cannot be read.
    """
    if name not in channel_names(artifact):
        raise ArtifactError(
            f"release {artifact.id} has the channels {', '.join(channel_names(artifact))}, not {name!r}"
        )
    return load_channel(artifact.path / CHANNELS / name)


def is_nearest(artifact: Artifact, name: str) -> bool:
    """Whether a channel of an opened release searches vectors, through an index that can be split into shards."""
    return read_header(artifact.path / CHANNELS / name).kind == NearestConfig().kind


def nearest_folder(artifact: Artifact, name: str) -> Path:
    """The directory of a nearest channel of an opened release.

    Raises:
        ArtifactError: When the channel is of another kind, which has no index to split.
    """
    directory = artifact.path / CHANNELS / name
    if not is_nearest(artifact, name):
        raise ArtifactError(
            f"channel {name!r} of release {artifact.id} is not of kind nearest: it has no index to split"
        )
    return directory


def load_unindexed(artifact: Artifact, name: str) -> NearestChannel:
    """A nearest channel of an opened release without its index: vectors are mapped, and searched exactly if at all.

    Raises:
        ArtifactError: When the channel has no index, or its vectors cannot be read.
    """
    return nearest.load_rows(nearest_folder(artifact, name), Shard(0, 1))


def load_encoders(
    artifact: Artifact, channels: Mapping[str, Channel], texts: TextLoader = backbone_itself
) -> tuple[QueryEncoder, ...]:
    """The query encoders of an opened release. Backbones load when the first text or picture comes.

    Args:
        artifact: The release.
        channels: Its channels: they hold the item vectors that histories are read with.
        texts: What encodes the texts of questions.

    Raises:
        SpaceError: When the towers, an index or a frozen space do not belong together.
        ArtifactError: When a file cannot be read.
    """
    settings = read_settings(artifact)
    frozen = tuple(FrozenSpace(**one) for one in settings["frozen"])
    require_spaces(tuple(channels.values()), settings["towers_space"], frozen)
    backbones = _backbones(artifact.path)
    encoders: list[QueryEncoder] = []
    if settings["towers_space"] is not None:
        towers = _towers(artifact.path / TOWERS, settings["towers_space"], channels, backbones)
        encoders.append(replace(towers, texts=texts, user_tower=_user_tower(artifact)))
    for space in frozen:
        vectors = {c.space_id: c.index.vectors for c in channels.values() if isinstance(c, NearestChannel)}
        encoder = FrozenQueryEncoder(space.modality, vectors.get(space.id), space.id, space.dim, backbones)
        encoders.append(replace(encoder, texts=texts))
    return tuple(encoders)


def read_settings(artifact: Artifact) -> dict[str, Any]:
    """The content of `release.json`.

    Raises:
        ArtifactError: When it cannot be read.
    """
    try:
        settings: dict[str, Any] = json.loads(artifact.file(RELEASE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{artifact.path / RELEASE_FILE} cannot be read: {error}") from None
    return settings


def _towers(
    directory: Path, space_id: str, channels: Mapping[str, Channel], backbones: BackboneLoader
) -> TowerQueryEncoder:
    from recsys_ray.encoders.two_tower import load_towers, read_space_id

    own = read_space_id(directory)
    if own != space_id:
        raise SpaceError(f"{directory} holds towers of space {own}; the release was published for {space_id}")
    vectors = next(
        channel.index.vectors
        for channel in channels.values()
        if isinstance(channel, NearestChannel) and channel.space_id == space_id
    )
    return TowerQueryEncoder(load_towers(directory), vectors, space_id, backbones)


def _user_tower(artifact: Artifact) -> "OnnxUserTower | None":
    """The exported user tower, where the release has one and ONNX Runtime is there to walk it."""
    from recsys_ray.encoders.onnx_user import USER_TOWER_FILE, load_user_tower

    path = f"{QUERY_HISTORY}/{USER_TOWER_FILE}"
    if path not in artifact.manifest.files or find_spec("onnxruntime") is None:
        return None
    return load_user_tower(artifact.path / path)


def _backbones(directory: Path) -> BackboneLoader:
    """Loads each backbone once, from the release alone."""
    folders = backbone_folders(directory)

    @cache
    def load(modality: str) -> "Backbone | None":
        folder = folders.get(modality)
        if folder is None:
            return None
        if modality == "text":
            from recsys_ray.encoders.text import load_text_backbone

            return load_text_backbone(str(folder))
        from recsys_ray.encoders.image import load_image_backbone

        return load_image_backbone(str(folder))

    return load
