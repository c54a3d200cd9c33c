"""The encoders of a release, or of a towers artifact, as plain Hugging Face directories."""

from pathlib import Path

from recsys_ray.core.artifacts import Artifact, open_artifact, verify
from recsys_ray.core.errors import ArtifactError
from recsys_ray.encoders.export import Exported, export_backbones
from recsys_ray.encoders.two_tower import SPEC_FILE
from recsys_ray.retrieval.release_files import open_release
from recsys_ray.retrieval.release_parts import TOWERS, backbone_folders


def export(source: Path, target: Path) -> list[Exported]:
    """Write each backbone of `source` into a directory of its own under `target`.

    Args:
        source: A release, the storage of a run, or a towers artifact.
        target: A folder that is new or empty.

    Raises:
        ArtifactError: When there is no such artifact, a file of it is changed, or no text or picture is encoded in it.
        ConfigError: When `target` holds something.
    """
    artifact = _open(source)
    folders = backbone_folders(artifact.path)
    if not folders:
        raise ArtifactError(f"{artifact.path} has no backbone to export: its model reads neither texts nor pictures")
    return export_backbones(folders, target)


def _open(source: Path) -> Artifact:
    if not (source / SPEC_FILE).is_file():
        return open_release(source)
    artifact = open_artifact(source, TOWERS)
    verify(artifact)
    return artifact
