"""Artifacts: immutable directories with a manifest, published atomically and verified before they are read."""

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from recsys_ray.core.errors import ArtifactError

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK_BYTES = 1 << 20
_LEFT_AFTER_S = 86_400
_SEAL_THREADS = 16


@dataclass(frozen=True)
class FileEntry:
    """What the manifest says of one file."""

    sha256: str
    num_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, what it was made of, and what its files must hash to."""

    kind: str
    id: str
    config: dict[str, Any]
    parents: dict[str, str]
    files: dict[str, FileEntry]
    created_at: str
    summary: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT


@dataclass(frozen=True)
class Artifact:
    """A published artifact: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        """The id in the manifest."""
        return self.manifest.id

    @property
    def summary(self) -> dict[str, Any]:
        """The figures its stage wrote down for people and later stages."""
        return self.manifest.summary

    @property
    def num_bytes(self) -> int:
        """Of all its files."""
        return sum(entry.num_bytes for entry in self.manifest.files.values())

    def file(self, name: str) -> Path:
        """The path of one of its files.

        Raises:
            ArtifactError: When the manifest does not list the file.
        """
        if name not in self.manifest.files:
            listed = ", ".join(sorted(self.manifest.files))
            raise ArtifactError(f"{self.path} has no file {name!r}; its manifest lists: {listed}")
        return self.path / name


class ArtifactStore:
    """A folder of artifacts, ``<root>/<kind>/<id>``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, kind: str, artifact_id: str) -> Path:
        """Where the artifact is or would be."""
        return self.root / kind / artifact_id

    def find(self, kind: str, artifact_id: str) -> Artifact | None:
        """The artifact when it was published whole, else None."""
        path = self.path(kind, artifact_id)
        return open_artifact(path, kind) if (path / MANIFEST).is_file() else None

    @contextmanager
    def alone(self, kind: str, artifact_id: str) -> Iterator[None]:
        """Keep other processes and threads that would make the same artifact waiting for the length of the block.

        The lock goes with the process that holds it, however that ends.
        """
        path = self.root / ".locks" / f"{kind}-{artifact_id}"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def publish(
        self,
        kind: str,
        artifact_id: str,
        write: Callable[[Path], Mapping[str, Any]],
        config: Mapping[str, Any],
        parents: Mapping[str, str],
    ) -> Artifact:
        """Write aside, fsync, rename; the manifest is written last, so a reader sees all of it or nothing.

        Args:
            kind: The kind of artifact, which is also its folder.
            artifact_id: Its id, see `artifact_id`.
            write: Fills the given empty directory and returns the summary.
            config: The settings that changed the result.
            parents: Role to id of the artifacts it was made from.
        """
        final = self.path(kind, artifact_id)
        final.parent.mkdir(parents=True, exist_ok=True)
        _sweep(final.parent)
        aside = final.parent / f".{artifact_id}.{uuid.uuid4().hex[:8]}.tmp"
        aside.mkdir()
        try:
            summary = dict(write(aside))
            _seal(aside, kind, artifact_id, dict(config), dict(parents), summary)
            _move(aside, final)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return open_artifact(final, kind)


def artifact_id(
    stage: str, version: int, settings: Mapping[str, Any], parents: Mapping[str, str], inputs: str = ""
) -> str:
    """The id of what a stage makes: the same inputs, settings and code version give the same id.

    Args:
        stage: The stage's name.
        version: Raised by hand when the stage's code changes its result.
        settings: See `recsys_ray.core.config.result_settings`.
        parents: Role to id of the artifacts it reads.
        inputs: Content digest of raw input files, see `digest_files`.
    """
    text = json.dumps([stage, version, settings, dict(parents), inputs], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_files(paths: list[Path]) -> str:
    """One digest of the names and contents of files; folders count with all files below them."""
    total = hashlib.sha256()
    for path in paths:
        files = sorted(inner for inner in path.rglob("*") if inner.is_file()) if path.is_dir() else [path]
        for file in files:
            total.update(f"{file.name}\0{sha256_file(file)}\0".encode())
    return total.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def open_artifact(path: Path, kind: str) -> Artifact:
    """Read the manifest and check kind and format; file contents are checked by `verify`.

    Raises:
        ArtifactError: When there is no readable manifest or it is of another kind or format.
    """
    try:
        text = (path / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path} is not an artifact: it has no {MANIFEST}") from None
    return Artifact(path, read_manifest(text, str(path), kind))


def read_manifest(text: bytes, source: str, kind: str) -> Manifest:
    """The content of a `manifest.json`, of an artifact of some kind.

    Args:
        text: It.
        source: Where the artifact is, for people.
        kind: What it must be.

    Raises:
        ArtifactError: When it cannot be read, or is of another kind or format.
    """
    try:
        values = json.loads(text)
        files = {name: FileEntry(**entry) for name, entry in values.pop("files").items()}
        manifest = Manifest(files=files, **values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArtifactError(f"{source}/{MANIFEST} cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise ArtifactError(
            f"{source} has format {manifest.format}; this version reads format {FORMAT}: publish it again"
        )
    if manifest.kind != kind:
        raise ArtifactError(f"{source} is a {manifest.kind!r} artifact; a {kind!r} is needed here")
    return manifest


def unsealed(path: Path, kind: str) -> Artifact:
    """What a stage has written so far, for one that must read its own work: files are listed, not hashed."""
    files = {file.relative_to(path).as_posix(): FileEntry("", file.stat().st_size) for file in _files(path)}
    return Artifact(path, Manifest(kind, "", {}, {}, files, ""))


def verify(artifact: Artifact) -> None:
    """Hash every file against the manifest.

    Raises:
        ArtifactError: Naming the first file that is missing, changed or outside the artifact.
    """
    root = artifact.path.resolve()
    for name, entry in artifact.manifest.files.items():
        path = artifact.path / name
        if not path.resolve().is_relative_to(root):
            raise ArtifactError(f"{artifact.path}: file {name!r} lies outside the artifact")
        if not path.is_file():
            raise ArtifactError(f"{artifact.path}: file {name!r} is missing")
        size = path.stat().st_size
        if size != entry.num_bytes:
            raise ArtifactError(f"{artifact.path}: file {name!r} has {size} bytes, the manifest says {entry.num_bytes}")
        if sha256_file(path) != entry.sha256:
            raise ArtifactError(f"{artifact.path}: file {name!r} does not hash to what the manifest says")


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file, or all files of a folder, at `target`: by hard link where the file system allows, else by copy."""
    if source.is_dir():
        for inner in sorted(source.rglob("*")):
            if inner.is_file():
                link_or_copy(inner, target / inner.relative_to(source))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _sweep(folder: Path) -> None:
    """Remove what killed runs left half-written; a day old, so that no run at work loses anything."""
    for left in folder.glob(".*.tmp"):
        if time.time() - left.stat().st_mtime > _LEFT_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)


def _seal(
    path: Path, kind: str, artifact_id: str, config: dict[str, Any], parents: dict[str, str], summary: dict[str, Any]
) -> None:
    found = _files(path)
    # Most of the time is spent waiting for the disk: side by side, ten thousand pictures take seconds, not minutes.
    with ThreadPoolExecutor(_SEAL_THREADS) as pool:
        entries = list(pool.map(_sealed_entry, found))
    files = {file.relative_to(path).as_posix(): entry for file, entry in zip(found, entries, strict=True)}
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = Manifest(kind, artifact_id, config, parents, files, created_at, summary)
    target = path / MANIFEST
    target.write_text(json.dumps(asdict(manifest), indent=1, default=str) + "\n")
    fsync(target)


def _files(path: Path) -> list[Path]:
    return sorted(inner for inner in path.rglob("*") if inner.is_file())


def _sealed_entry(file: Path) -> FileEntry:
    fsync(file)
    return FileEntry(sha256_file(file), file.stat().st_size)


def _move(aside: Path, final: Path) -> None:
    try:
        aside.rename(final)
    except OSError:
        # Another run published the same id first (it holds the same content), or a broken folder is in the way.
        if not (final / MANIFEST).is_file():
            shutil.rmtree(final)
            aside.rename(final)
    fsync(final.parent)


def fsync(path: Path) -> None:
    """Wait until a file, or what a folder says of its entries, has reached the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
