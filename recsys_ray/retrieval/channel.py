"""The protocol of a channel: one source of candidates."""

from pathlib import Path
from typing import Literal, Protocol

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries

Reads = frozenset[Literal["history", "text", "vectors"]]
"""The parts of a question that a channel answers to."""


class Channel(Protocol):
    """One source of candidates. A fitted value: `fit` and `load` functions beside the class return finished channels.

    Laws, checked by one contract test: `retrieve` equals the top k of `scores` (up to the recall of an ANN index);
    nothing excluded or not allowed ever comes back; k candidates come back whenever k scored, allowed items exist;
    `save` then `load` answers the same; a question that lacks all that the channel reads gets no candidates.
    """

    @property
    def name(self) -> str:
        """Its name in configuration, answers and reports."""
        ...

    @property
    def reads(self) -> Reads:
        """What it needs of a question, at least one of them; empty when it answers everybody alike."""
        ...

    def scores(self, queries: Queries) -> FloatArray:
        """(B, N) scores of the whole catalogue, minus infinity where excluded or without evidence. The exact oracle."""
        ...

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """The k best candidates of each query, seen and filtered items excluded before the cut."""
        ...

    def save(self, directory: Path) -> None:
        """Write all that `load` needs into an existing, empty directory."""
        ...
