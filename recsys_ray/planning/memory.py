"""What a plan of memory is made of: lines with their arithmetic, added up for each process of each stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["host", "gpu"]


@dataclass(frozen=True)
class Sizes:
    """How much data there is.

    Attributes:
        items: N.
        users: U.
        events: E.
        tokens: Attribute vocabulary of the items, padding included.
        user_tokens: Attribute vocabulary of the users, padding included.
        numeric: Numeric attributes.
        vectors: Columns of precomputed vectors, and their length.
    """

    items: int
    users: int
    events: int
    tokens: int = 1
    user_tokens: int = 1
    numeric: int = 0
    vectors: tuple[tuple[str, int], ...] = ()

    @property
    def mean_events(self) -> float:
        """Events a user."""
        return self.events / max(self.users, 1)


@dataclass(frozen=True)
class Line:
    """One thing that takes memory.

    Attributes:
        what: For people.
        num_bytes: How much.
        formula: The arithmetic behind it.
    """

    what: str
    num_bytes: float
    formula: str


@dataclass(frozen=True)
class Need:
    """What one process of a stage needs at its peak.

    Attributes:
        stage: The stage.
        process: "worker", "actor", "driver" or "replica".
        kind: Which memory.
        lines: What it is made of.
    """

    stage: str
    process: str
    kind: Kind
    lines: tuple[Line, ...]

    @property
    def num_bytes(self) -> float:
        """All lines together."""
        return sum(line.num_bytes for line in self.lines)


@dataclass(frozen=True)
class Room:
    """Memory that there is.

    Attributes:
        host_bytes: For a process: of its machine, or its share of it.
        gpu_bytes: Of a GPU; None where nobody said and there is none to ask.
    """

    host_bytes: float
    gpu_bytes: float | None = None

    def fits(self, need: Need) -> bool | None:
        """Whether a process fits; None where the size of its memory is not known."""
        limit = self.host_bytes if need.kind == "host" else self.gpu_bytes
        return None if limit is None else need.num_bytes <= limit


def needs_of(stage: str, process: str, lines: Iterable[tuple[Kind, Line]]) -> list[Need]:
    """One need a kind of memory."""
    kept = [(kind, line) for kind, line in lines if line.num_bytes > 0]
    kinds: tuple[Kind, ...] = ("gpu", "host")
    return [
        Need(stage, process, kind, tuple(line for of, line in kept if of == kind))
        for kind in kinds
        if any(of == kind for of, _ in kept)
    ]
