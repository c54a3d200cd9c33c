"""The releases of a folder: which there are, which one is served, and moving between them."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recsys_ray.core.artifacts import Artifact, open_artifact
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.retrieval.release_check import check_release
from recsys_ray.retrieval.release_diff import ReleaseDiff, diff
from recsys_ray.retrieval.release_files import active_release, releases_folder
from recsys_ray.retrieval.release_parts import KIND
from recsys_ray.retrieval.release_pointer import Pointer, locked, now, read_pointer, write_pointer


@dataclass(frozen=True)
class ReleaseInfo:
    """A line of the list.

    Attributes:
        id: Its id, which is the name of its directory.
        path: Its directory.
        created_at: When it was published, ISO 8601; empty when its manifest cannot be read.
        items: In its catalogue.
        fitted_on: The events it was fitted on, for people.
        measured: The fused lists' metrics in its report.
        num_bytes: Of its files.
        active: Whether the pointer names it.
        problem: Why its manifest cannot be read; None when it can.
    """

    id: str
    path: Path
    created_at: str = ""
    items: int = 0
    fitted_on: str = ""
    measured: dict[str, Any] = field(default_factory=dict)
    num_bytes: int = 0
    active: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class Pruned:
    """What `Releases.prune` removed.

    Attributes:
        ids: The releases, newest first.
        bytes_freed: Of files that nothing else holds any more.
        num_bytes: Of all their files: releases and the artifacts they were made of share files by hard links.
    """

    ids: Sequence[str]
    bytes_freed: int
    num_bytes: int


class Releases:
    """The releases of one folder.

    Args:
        folder: It, the storage of a run, or one of its releases.

    Attributes:
        folder: Where the releases and their pointer are.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = releases_folder(folder)

    def list(self) -> list[ReleaseInfo]:
        """All of them, newest first; those whose manifest cannot be read come last."""
        pointer = read_pointer(self.folder)
        active = None if pointer is None else pointer.id
        found = [self._info(name, name == active) for name in self._names()]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    def active(self) -> Path | None:
        """The directory of the active release; None where none was ever activated.

        Raises:
            ArtifactError: When the pointer cannot be read, or names what is not there.
        """
        return active_release(self.folder)

    def find(self, release_id: str) -> Artifact:
        """A release by its id.

        Raises:
            ArtifactError: When there is none, or its manifest cannot be read or is of another.
        """
        names = self._names()
        if release_id not in names:
            raise ArtifactError(f"{self.folder} has no release {release_id!r}; it has: {', '.join(names) or 'none'}")
        artifact = open_artifact(self.folder / release_id, KIND)
        if artifact.id != release_id:
            raise ArtifactError(f"{artifact.path} holds release {artifact.id}")
        return artifact

    def activate(self, release_id: str) -> None:
        """Make a release the one that is served, if it passes `check_release`.

        Raises:
            ArtifactError: When there is none or it does not pass; then what was active stays so.
        """
        with locked(self.folder):
            check_release(self.find(release_id).path)
            pointer = read_pointer(self.folder)
            if pointer is None:
                write_pointer(self.folder, Pointer(release_id, now()))
            elif pointer.id != release_id:
                write_pointer(self.folder, pointer.to(release_id))

    def roll_back(self) -> str:
        """Make the release before the active one active again, if it passes `check_release`; its id.

        Raises:
            ArtifactError: When there is none or it does not pass; then what was active stays so.
        """
        with locked(self.folder):
            pointer = read_pointer(self.folder)
            if pointer is None:
                raise ArtifactError(f"{self.folder}: no release was ever activated: there is nothing to roll back to")
            earlier = pointer.back()
            check_release(self.find(earlier.id).path)
            write_pointer(self.folder, earlier)
            return earlier.id

    def diff(self, a: str, b: str) -> ReleaseDiff:
        """What changes from release `a` to release `b`.

        Raises:
            ArtifactError: When there is no such release, or a file of one cannot be read.
        """
        return diff(self.find(a), self.find(b))

    def prune(self, keep: int) -> Pruned:
        """Remove all but the newest `keep` releases.

        Kept in any case: the active one, the one to roll back to, the one that a run's storage points to, and what
        has no readable manifest.

        Raises:
            ConfigError: When `keep` is less than 1.
        """
        if keep < 1:
            raise ConfigError("keep", keep, "at least 1")
        with locked(self.folder):
            pointer = read_pointer(self.folder)
            needed = set() if pointer is None else {pointer.id, *pointer.before[-1:]}
            link = self.folder.parent.parent / KIND
            if link.resolve().parent == self.folder:
                needed.add(link.resolve().name)
            whole = [one for one in self.list() if one.problem is None]
            removed = [one for one in whole[keep:] if one.id not in needed]
            freed, total = _num_bytes([one.path for one in removed])
            if pointer is not None:
                write_pointer(self.folder, pointer.without({one.id for one in removed}))
            for one in removed:
                # Out of sight in one step: a reader finds it whole or not at all.
                aside = one.path.with_name(f".{one.id}.pruned.tmp")
                one.path.rename(aside)
                shutil.rmtree(aside)
            return Pruned([one.id for one in removed], freed, total)

    def _names(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in self.folder.glob("[!.]*") if path.is_dir()))

    def _info(self, name: str, active: bool) -> ReleaseInfo:
        try:
            artifact = self.find(name)
        except ArtifactError as error:
            return ReleaseInfo(name, self.folder / name, active=active, problem=str(error))
        manifest, summary = artifact.manifest, artifact.summary
        return ReleaseInfo(
            id=name,
            path=artifact.path,
            created_at=manifest.created_at,
            items=int(summary.get("items", 0)),
            fitted_on=str(summary.get("fitted_on", "")),
            measured=dict(summary.get("measured", {})),
            num_bytes=artifact.num_bytes,
            active=active,
        )


def _num_bytes(folders: Sequence[Path]) -> tuple[int, int]:
    """Of the files whose every name is in these folders, and of all files there; each file counts once."""
    files = [path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    names = Counter((file.st_dev, file.st_ino) for file in files)
    once = {(file.st_dev, file.st_ino): file for file in files}
    freed = sum(file.st_size for inode, file in once.items() if names[inode] == file.st_nlink)
    return freed, sum(file.st_size for file in once.values())
