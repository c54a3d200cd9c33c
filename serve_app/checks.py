"""A release is checked in a child process before it may take over, once on each node, whoever asks first."""

import fcntl
import hashlib
import json
import os
import tempfile
import time
import uuid
from pathlib import Path

from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.release_check import check_release

_REFUSED_FOR_S = 600.0  # then it is looked at again: it may have lacked nothing but memory or time
_KEEP_S = 86_400.0


def check_once(path: Path) -> None:
    """Check a release, or take over what another process of this node found a moment ago about the same files.

    Raises:
        ArtifactError: Why it must not answer.
    """
    verdict = _folder() / f"{_fingerprint(path)}.json"
    with verdict.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = _read(verdict)
        reason = _check(path, verdict) if found is None else found
    if reason:
        raise ArtifactError(reason)


def check_anew(path: Path) -> None:
    """Check a release whatever was found before, and let all processes of this node know.

    Raises:
        ArtifactError: Why it must not answer.
    """
    verdict = _folder() / f"{_fingerprint(path)}.json"
    with verdict.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        reason = _check(path, verdict)
    if reason:
        raise ArtifactError(reason)


def remember_served(folder: Path, release: str) -> None:
    """Write down which release of a folder answers on this node: see `last_served`."""
    target = _served(folder)
    aside = target.with_suffix(f".{uuid.uuid4().hex}")
    aside.write_text(release)
    aside.rename(target)


def last_served(folder: Path) -> str | None:
    """What answered on this node last, for whoever starts while the active release cannot; None where nothing did."""
    try:
        return _served(folder).read_text()
    except OSError:
        return None


def _check(path: Path, verdict: Path) -> str:
    reason = ""
    try:
        check_release(path)
    except ArtifactError as error:
        reason = str(error)
    verdict.write_text(json.dumps(reason))
    return reason


def _read(verdict: Path) -> str | None:
    """Why it was refused, empty when it was not; None where that is not known."""
    try:
        reason, age_s = json.loads(verdict.read_text()), time.time() - verdict.stat().st_mtime
    except (OSError, ValueError):
        return None
    return None if not isinstance(reason, str) or (reason and age_s > _REFUSED_FOR_S) else reason


def _fingerprint(path: Path) -> str:
    """Another one as soon as any file was written again; reading them all is what the check is for."""
    digest = hashlib.sha256(str(path.resolve()).encode())
    for file in sorted(path.rglob("*")):
        stat = file.lstat()
        digest.update(f"{file}\0{stat.st_ino}\0{stat.st_size}\0{stat.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:32]


def _served(folder: Path) -> Path:
    return _folder() / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:32]}.served"


def _folder() -> Path:
    """Of this node and user alone: what lies there is believed."""
    folder = Path(tempfile.gettempdir()) / f"recsys_ray-checks-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise ArtifactError(f"{folder} belongs to somebody else: set TMPDIR to a folder of your own")
    for old in folder.iterdir():
        if old.suffix != ".served" and time.time() - old.stat().st_mtime > _KEEP_S:
            old.unlink(missing_ok=True)
    return folder
