"""Releases in other storage, by URI: S3, Google Cloud Storage, HDFS, `file://` … through pyarrow.fs.

A release is a folder of objects there too, its manifest written last. What is read comes into a folder on this machine
first, file by file against the manifest, so that a release is memory-mapped, hashed and loaded in one way only.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType

from recsys_ray.core.artifacts import MANIFEST, FileEntry, Manifest, open_artifact, read_manifest, sha256_file, verify
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.progress import say
from recsys_ray.retrieval.release_parts import KIND
from recsys_ray.retrieval.release_pointer import is_plain

_CHUNK_BYTES = 4 << 20
_WITHOUT_FOLDERS = ("s3", "gcs", "abfs")
_ONE_REQUEST = "allow_delayed_open"
_REASONS = {
    "ACCESS_DENIED": "access is denied: credentials are missing, wrong, or may not do this",
    "NO_SUCH_BUCKET": "there is no such bucket",
    "INVALID_ACCESS_KEY_ID": "the access key is unknown there",
    "SIGNATURE_DOES_NOT_MATCH": "the secret key does not belong to the access key",
    "NETWORK_CONNECTION": "the server cannot be reached",
}


@dataclass(frozen=True)
class Remote:
    """A folder in other storage.

    Attributes:
        uri: For people: without the credentials and options of the one that was given.
        files: Where it is.
        path: In there.
    """

    uri: str
    files: Any
    path: str

    def inside(self, name: str) -> "Remote":
        """A folder of this one."""
        return Remote(f"{self.uri}/{name}", self.files, f"{self.path}/{name}")

    def folders(self) -> list[str]:
        """The names of the folders in it; none where it does not exist."""
        with _explained(self.uri):
            found = self.files.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def num_bytes(self, name: str) -> int | None:
        """The size of a file, None where there is none."""
        with _explained(f"{self.uri}/{name}"):
            info = self.files.get_file_info(f"{self.path}/{name}")
        return info.size if info.type == FileType.File else None

    def sizes(self) -> dict[str, int]:
        """The files in it and in its folders, by one listing; none where it does not exist."""
        with _explained(self.uri):
            found = self.files.get_file_info(FileSelector(self.path, allow_not_found=True, recursive=True))
        files = [info for info in found if info.type == FileType.File]
        return {info.path.removeprefix(f"{self.path}/"): info.size for info in files}

    def chunks(self, name: str) -> Iterator[bytes]:
        """A file's content."""
        with _explained(f"{self.uri}/{name}"), self.files.open_input_stream(f"{self.path}/{name}") as stream:
            yield from iter(partial(stream.read, _CHUNK_BYTES), b"")

    def write(self, name: str, source: Path) -> None:
        """Copy a file there."""
        target = f"{self.path}/{name}"
        with _explained(f"{self.uri}/{name}"):
            if self.files.type_name not in _WITHOUT_FOLDERS:
                self.files.create_dir(target.rpartition("/")[0])
            with self.files.open_output_stream(target) as out, source.open("rb") as stream:
                for chunk in iter(partial(stream.read, _CHUNK_BYTES), b""):
                    out.write(chunk)


def is_uri(path: str | Path) -> bool:
    """Whether it names other storage and not a path of this machine."""
    return isinstance(path, str) and "://" in path


def open_remote(uri: str) -> Remote:
    """The folder at a URI, which need not exist yet.

    Raises:
        ConfigError: When pyarrow knows no such storage, or an option of the URI.
    """
    parts = urlsplit(uri)
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")
    try:
        files, path = FileSystem.from_uri(_with_small_files_in_one_request(uri) if parts.scheme == "s3" else uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ConfigError("URI", shown, "what pyarrow.fs opens: s3://, gs://, hdfs://, file://", str(error)) from None
    return Remote(shown, files, path.rstrip("/"))


def push(release: Path, uri: str) -> str:
    """Copy a release into a folder of other storage, its manifest last; what is there already is not sent again.

    Args:
        release: Its directory.
        uri: Of the folder that is to hold it beside others.

    Returns:
        The URI of the release there, without credentials.

    Raises:
        ArtifactError: When a file is not as the manifest says, another release of its id is there, or the storage
            refuses.
        ConfigError: When the URI is none.
    """
    artifact = open_artifact(release, KIND)
    verify(artifact)
    remote = open_remote(uri).inside(artifact.id)
    if remote.num_bytes(MANIFEST) is not None:
        if _digest(remote, MANIFEST) != sha256_file(release / MANIFEST):
            raise ArtifactError(
                f"{remote.uri} holds another release of that id; releases never change: remove it there"
            )
        say(f"{remote.uri} is complete already")
        return remote.uri
    there = remote.sizes()
    for name, entry in artifact.manifest.files.items():
        if there.get(name) != entry.num_bytes or _digest(remote, name) != entry.sha256:
            remote.write(name, release / name)
    remote.write(MANIFEST, release / MANIFEST)
    return remote.uri


def pull(uri: str, folder: Path) -> Path:
    """Bring a release into a folder of this machine. What a killed pull left is used; two at once share one.

    Args:
        uri: Of a release, or of a folder of releases: then of the newest.
        folder: Where it is to lie beside others.

    Returns:
        Its directory.

    Raises:
        ArtifactError: When there is none, a file is not as the manifest says, or the storage refuses.
        ConfigError: When the URI is none.
    """
    return _bring(_find(open_remote(uri)), folder)


def fetch(uri: str) -> Path:
    """As `pull`, into a folder of the cache (`$XDG_CACHE_HOME`, else `~/.cache`) of its own for each folder there."""
    release = _find(open_remote(uri))
    beside = hashlib.sha256(release.uri.rpartition("/")[0].encode()).hexdigest()[:16]
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return _bring(release, base / "recsys-ray" / beside / KIND)


def _with_small_files_in_one_request(uri: str) -> str:
    """On S3 an upload in parts takes three requests at least; with this a file of a few megabytes takes one."""
    return uri if _ONE_REQUEST in uri else f"{uri}{'&' if '?' in uri else '?'}{_ONE_REQUEST}=true"


def _find(remote: Remote) -> Remote:
    """The release at a URI, or the newest in it."""
    if remote.num_bytes(MANIFEST) is not None:
        return remote
    inner = [remote.inside(name) for name in remote.folders() if is_plain(name)]
    found = [(_manifest(one), one) for one in inner if one.num_bytes(MANIFEST) is not None]
    if not found:
        raise ArtifactError(f"{remote.uri} holds no release: there is no such bucket or folder, or nothing in it")
    return max(found, key=lambda one: (one[0].created_at, one[0].id))[1]


def _bring(remote: Remote, folder: Path) -> Path:
    text = b"".join(remote.chunks(MANIFEST))
    manifest = read_manifest(text, remote.uri, KIND)
    _require_inside(manifest, remote.uri)
    target, part = folder / manifest.id, folder / f".{manifest.id}.part"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{manifest.id}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (target / MANIFEST).is_file():
            if (target / MANIFEST).read_bytes() != text:
                raise ArtifactError(f"{target} is another release than {remote.uri}: remove it and try again")
            return target
        say(f"fetching {remote.uri}")
        for name, entry in manifest.files.items():
            _bring_file(remote, name, entry, part / name)
        for left in part.rglob("*"):
            if left.is_file() and left.relative_to(part).as_posix() not in manifest.files:
                left.unlink()
        with (part / MANIFEST).open("wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        part.rename(target)
    return target


def _bring_file(remote: Remote, name: str, entry: FileEntry, target: Path) -> None:
    if target.is_file() and target.stat().st_size == entry.num_bytes and sha256_file(target) == entry.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with target.open("wb") as stream:
        for chunk in remote.chunks(name):
            digest.update(chunk)
            stream.write(chunk)
        stream.flush()
        os.fsync(stream.fileno())
    if digest.hexdigest() != entry.sha256:
        target.unlink()
        raise ArtifactError(f"{remote.uri}: file {name!r} does not hash to what the manifest says")


def _require_inside(manifest: Manifest, source: str) -> None:
    """Names become paths here: none may lead out of the release's folder."""
    for name in (manifest.id, *manifest.files):
        if not all(is_plain(part) for part in name.split("/")) or name == MANIFEST:
            raise ArtifactError(f"{source}: file {name!r} lies outside the artifact")


def _manifest(remote: Remote) -> Manifest:
    return read_manifest(b"".join(remote.chunks(MANIFEST)), remote.uri, KIND)


def _digest(remote: Remote, name: str) -> str:
    digest = hashlib.sha256()
    for chunk in remote.chunks(name):
        digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """What a storage refuses, in a line."""
    try:
        yield
    except FileNotFoundError:
        raise ArtifactError(f"{what} is not there: no such bucket, folder or file") from None
    except OSError as error:
        text = str(error)
        reason = next((reason for sign, reason in _REASONS.items() if sign in text), "the storage refuses")
        raise ArtifactError(f"{what}: {reason} ({text})") from None
