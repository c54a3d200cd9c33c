"""Search by the first numbers of each vector alone: shorter, faster, and worse unless the vectors were trained for it.

Kusupati et al. 2022, "Matryoshka Representation Learning": trained with the loss over several prefixes, the first d
numbers of a vector, at unit length again, are nearly as good as a model of d numbers. Other vectors may be cut as well.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import INDEX_FILE, save_vectors
from recsys_ray.index.subset import Allowed, Found

if TYPE_CHECKING:
    from recsys_ray.index.spec import Index

PREFIX_FOLDER = "prefix"


def cut(vectors: FloatArray, dim: int) -> FloatArray:
    """(B, d) the first d numbers of (B, D) vectors at unit length; what is all zeros there stays so."""
    short = vectors[:, :dim]
    norms = np.linalg.norm(short, axis=1, keepdims=True)
    return np.ascontiguousarray(short / np.maximum(norms, 1e-12), np.float32)


def require_dim(dim: int, vectors: FloatArray) -> None:
    """Check that there is something to cut.

    Raises:
        ConfigError: When the vectors have fewer numbers.
    """
    if dim > vectors.shape[1]:
        raise ConfigError("index.dim", dim, f"at most {vectors.shape[1]}, the length of the vectors, or null for all")


@dataclass(frozen=True)
class PrefixIndex:
    """An index over the first d numbers of vectors that are kept whole beside it: histories are read with those.

    Attributes:
        vectors: (N, D) float32.
        inner: Over (N, d).
    """

    vectors: FloatArray
    inner: "Index"

    @property
    def dim(self) -> int:
        """Length d of the vectors that are searched."""
        return int(self.inner.vectors.shape[1])

    @property
    def factory(self) -> str:
        """What the inner index was built by."""
        return self.inner.factory

    def scores(self, queries: FloatArray) -> FloatArray:
        """(B, N) exact inner products of (B, D) queries and the items, both cut."""
        return self.inner.scores(cut(queries, self.dim))

    def search(
        self, queries: FloatArray, k: int, exclude: Ragged | None = None, allowed: Allowed | None = None
    ) -> Found:
        """As `ExactIndex.search`, on (B, D) queries that are cut here."""
        return self.inner.search(cut(queries, self.dim), k, exclude, allowed)

    def save(self, directory: Path) -> None:
        """Write the whole vectors, the inner index in a folder of its own, and `index.json`."""
        save_vectors(directory, self.vectors)
        (directory / PREFIX_FOLDER).mkdir()
        self.inner.save(directory / PREFIX_FOLDER)
        (directory / INDEX_FILE).write_text(json.dumps({"factory": self.factory, "dim": self.dim}) + "\n")
