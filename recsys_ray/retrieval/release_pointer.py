"""Which release of a folder is served: `active.json` beside the releases. A reader sees the old one or the new one."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from recsys_ray.core.errors import ArtifactError

POINTER = "active.json"
_LOCK = ".active.lock"
_REMEMBERED = 100


@dataclass(frozen=True)
class Pointer:
    """The content of `active.json`.

    Attributes:
        id: The active release.
        since: When it was activated, ISO 8601.
        before: The ids that were active before it and were not rolled back, the last one last.
    """

    id: str
    since: str
    before: tuple[str, ...] = ()

    def to(self, release_id: str) -> "Pointer":
        """After another release was activated."""
        return Pointer(release_id, now(), (*self.before, self.id)[-_REMEMBERED:])

    def back(self) -> "Pointer":
        """After the release before it came back; the one rolled back is forgotten.

        Raises:
            ArtifactError: When there is none.
        """
        if not self.before:
            raise ArtifactError(f"no release was active before {self.id}: there is nothing to roll back to")
        return Pointer(self.before[-1], now(), self.before[:-1])

    def without(self, release_ids: set[str]) -> "Pointer":
        """After releases that were active before were removed."""
        return Pointer(self.id, self.since, tuple(one for one in self.before if one not in release_ids))

    def dump(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


def now() -> str:
    """This second, as artifacts write it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def parse_pointer(text: str | bytes, source: str) -> Pointer:
    """Read what `Pointer.dump` wrote.

    Raises:
        ArtifactError: When it is something else.
    """
    try:
        values = json.loads(text)
        pointer = Pointer(values["id"], values["since"], tuple(values["before"]))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{source} cannot be read: {error}; activate a release again") from None
    # The ids become names of folders.
    if not all(is_plain(one) for one in (pointer.id, *pointer.before)):
        raise ArtifactError(f"{source} names what cannot be the id of a release; activate a release again")
    return pointer


def is_plain(name: object) -> bool:
    """Whether a name stays inside its folder, and is neither hidden nor empty."""
    return isinstance(name, str) and name != "" and not name.startswith(".") and not set(name) & set("/\\\0")


def read_pointer(folder: Path) -> Pointer | None:
    """The pointer of a folder of releases, None where nothing was ever activated.

    Raises:
        ArtifactError: When it cannot be read.
    """
    try:
        text = (folder / POINTER).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_pointer(text, str(folder / POINTER))


def write_pointer(folder: Path, pointer: Pointer) -> None:
    """Write aside, fsync, rename; only under `locked`."""
    aside = folder / f".{POINTER}.part"
    with aside.open("w") as stream:
        stream.write(pointer.dump())
        stream.flush()
        os.fsync(stream.fileno())
    aside.rename(folder / POINTER)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes and threads that would change pointer or releases waiting; readers never wait."""
    with (folder / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
