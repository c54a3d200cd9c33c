"""The protocol of a channel: one source of candidates, fitted, saved in a release, loaded from it."""

from pathlib import Path
from typing import Literal, Protocol

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries

Reads = frozenset[Literal["history", "text", "vectors"]]
"""The parts of a question that a channel answers to."""


class Source(Protocol):
    """What gives candidates.

    Laws, checked by one contract test: `retrieve` equals the top k of `scores` (up to the recall of an ANN index);
    nothing excluded or not allowed ever comes back; k candidates come back whenever k scored, allowed items exist;
    a question that lacks all that it reads gets no candidates.
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


class Channel(Source, Protocol):
    """A source that was fitted: `fit` and `load` functions beside the class return finished channels.

    `save` then `load` answers the same.
    """

    def save(self, directory: Path) -> None:
        """Write all that `load` needs into an existing, empty directory."""
        ...
