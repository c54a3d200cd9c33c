"""Who is asked for: all users of a release or those of a file, as blocks that any process can read on its own."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from recsys_ray.core.artifacts import Artifact, sha256_file
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.online.history import HISTORIES_FILE

ALL = "all"


@dataclass(frozen=True)
class Block:
    """Some of the users.

    Attributes:
        number: From 0, in the order of the users.
        start: The first one: its row in the release, or the byte of the file that its line begins with.
        stop: Where the next block starts.
        num_users: How many.
    """

    number: int
    start: int
    stop: int
    num_users: int


@dataclass(frozen=True)
class Users:
    """Who is asked for.

    Attributes:
        file: UTF-8 text with one user id a line, readable by every process at work; None: all users of the release.
    """

    file: Path | None = None

    def digest(self) -> str:
        """What tells them from other users of the same release."""
        return ALL if self.file is None else sha256_file(self.file)

    def blocks(self, release: Artifact, size: int) -> Iterator[Block]:
        """The users in blocks of `size`; of a file, it is read through once."""
        if self.file is not None:
            yield from _lines(self.file, size)
            return
        total = pq.read_metadata(release.file(HISTORIES_FILE)).num_rows
        for number, start in enumerate(range(0, total, size)):
            stop = min(start + size, total)
            yield Block(number, start, stop, stop - start)

    def ids(self, block: Block, user_ids: IdMap) -> list[str]:
        """The ids of a block's users.

        Raises:
            ConfigError: When the file is no text.
        """
        if self.file is None:
            return user_ids.externals(range(block.start, block.stop))
        with self.file.open("rb") as stream:
            stream.seek(block.start)
            raw = stream.read(block.stop - block.start)
        try:
            return [line for line in map(str.strip, raw.decode().split("\n")) if line]
        except UnicodeDecodeError as error:
            raise ConfigError("users", str(self.file), "UTF-8 text with one user id a line", str(error)) from None


def _lines(file: Path, size: int) -> Iterator[Block]:
    """Blocks of lines that are not empty."""
    number = start = place = count = 0
    with file.open("rb") as stream:
        for line in stream:
            place += len(line)
            count += bool(line.strip())
            if count == size:
                yield Block(number, start, place, count)
                number, start, count = number + 1, place, 0
    if count:
        yield Block(number, start, place, count)
