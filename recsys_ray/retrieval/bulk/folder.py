"""The folder that candidates are written to.

::

    _question.json        what was asked; written before anything else
    part-000000.parquet   the candidates of the first block of users, whole or not there
    …
    _SUCCESS              all blocks are there

Names that begin with `_` or `.` are passed over by what reads folders of Parquet files.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.bulk.answers import SCHEMA

QUESTION_FILE, SUCCESS_FILE, _LOCK_FILE = "_question.json", "_SUCCESS", "_lock"
SINCE = "asked_at_us"  # the one entry of the question that is the first run's, and kept by those that go on


@dataclass(frozen=True)
class Folder:
    """A folder of candidates.

    Attributes:
        path: Readable and writable by every process at work.
    """

    path: Path

    def open(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Begin the folder, or go on in it; the question as it was asked first.

        Raises:
            ConfigError: When the folder holds something else, or the answers to another question.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        there = self.path / QUESTION_FILE
        if not there.is_file():
            if any(inner.name != _LOCK_FILE and not inner.name.startswith(".") for inner in self.path.iterdir()):
                raise ConfigError("to", str(self.path), "a folder that is new, empty or was begun by this command")
            _atomically(there, lambda path: _write_json(path, question))
        asked: dict[str, Any] = json.loads(there.read_text())
        for name in {*asked, *question} - {SINCE}:
            if asked.get(name) != question.get(name):
                hint = f"{self.path} holds the answers to another question: take another folder."
                raise ConfigError(name, question.get(name), f"{asked.get(name)!r}, as in {QUESTION_FILE}", hint)
        for left in self.path.glob(".*.tmp"):
            left.unlink()
        return asked

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep the folder from a second run at the same time; the lock goes with the process, however that ends.

        Raises:
            ConfigError: When another run has it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / _LOCK_FILE).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError("to", str(self.path), "a folder that no other run writes to now") from None
            yield

    def has(self, number: int) -> bool:
        """Whether a block is there."""
        return self._part(number).is_file()

    def write(self, number: int, tables: Iterable[pa.Table]) -> int:
        """Write a block, some users at a time; returns its rows."""
        rows = 0

        def write(path: Path) -> None:
            nonlocal rows
            with pq.ParquetWriter(path, SCHEMA) as writer:
                for table in tables:
                    writer.write_table(table)
                    rows += table.num_rows

        _atomically(self._part(number), write)
        return rows

    def finish(self) -> None:
        """Say that all blocks are there."""
        (self.path / SUCCESS_FILE).touch()

    def _part(self, number: int) -> Path:
        return self.path / f"part-{number:06d}.parquet"


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=1) + "\n")


def _atomically(final: Path, write: Callable[[Path], None]) -> None:
    """Write aside, fsync, rename: a reader, and the next run, see all of a file or none of it."""
    aside = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write(aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.rename(final)
    finally:
        aside.unlink(missing_ok=True)
