"""Matrix factorisation of implicit feedback by alternating least squares (iALS).

Hu, Koren and Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets", with the weights and the
frequency-scaled regularisation of Rendle et al. 2022, "Revisiting the Performance of iALS on Item Recommendation
Benchmarks". With x_u and y_i the vectors of users and items, S the pairs that were observed and a the weight of
unobserved pairs, it minimises

    sum over S (1 - x_u y_i)^2  +  a * sum over all pairs (x_u y_i)^2
    +  l * (sum over u (|S_u| + a N)^v |x_u|^2  +  sum over i (|S_i| + a U)^v |y_i|^2).

Users' vectors are no part of the channel: a history's vector solves its own normal equations, which is exactly the
users' half of a step, so that new events count at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.folded import FoldedChannel, FoldedConfig, load_items
from recsys_ray.retrieval.channels.settings import Search
from recsys_ray.retrieval.channels.table import SparseRows

_INITIAL_LENGTH = 0.1


class MatrixFactorisationConfig(FoldedConfig):
    """Implicit alternating least squares.

    Attributes:
        kind: Which channel this is.
        dim: Length of the vectors.
        unobserved: Weight of a pair that was not observed, where an observed one counts 1.
        regularisation: Weight of the squared lengths of the vectors.
        exponent: A vector's regularisation grows with its number of events to this power.
        iterations: Passes over users and items.
        seed: Of the first vectors.
    """

    kind: Literal["matrix_factorisation"] = "matrix_factorisation"
    dim: int = Field(64, ge=1, le=4096)
    unobserved: float = Field(0.1, gt=0)
    regularisation: float = Field(0.003, gt=0)
    exponent: float = Field(1.0, ge=0, le=1)
    iterations: int = Field(8, ge=1)
    seed: int = Field(0, ge=0)
    search: Search = Field(
        default_factory=lambda: {
            "decay": (0.6, 0.7, 0.8, 0.9, 1.0),
            "unobserved": (0.01, 0.03, 0.1, 0.3),
            "regularisation": (0.001, 0.003, 0.01),
        }
    )


@dataclass(frozen=True)
class LeastSquares:
    """The normal equations of vectors on one side, given all vectors of the other.

    Attributes:
        vectors: (N, D) float32 of the other side.
        gram: (D, D) float32 their Gram matrix.
        config: The weights.
        block_values: Float32 values held at once, or the vectors of the longest row where those are more.
    """

    vectors: FloatArray
    gram: FloatArray
    config: MatrixFactorisationConfig
    block_values: int = 8_000_000

    @classmethod
    def of(cls, vectors: FloatArray, config: MatrixFactorisationConfig) -> "LeastSquares":
        """Compute the Gram matrix."""
        return cls(vectors, vectors.T @ vectors, config)

    def __call__(self, steps: SparseRows) -> FloatArray:
        """Solve for B vectors.

        Args:
            steps: For each, the rows of `vectors` that it was observed with, and the weight of each observation.

        Returns:
            (B, D) float32, zeros where nothing was observed.
        """
        solved = np.zeros((len(steps.columns), len(self.gram)), np.float32)
        for chosen, width in self._blocks(steps.columns.lengths):
            solved[chosen] = self._solve(*_padded(steps, chosen, width))
        return solved

    def _solve(self, rows: IntArray, weights: FloatArray) -> FloatArray:
        """(B, D) for (B, L) rows and their weights, 0 at the padding."""
        config, dim = self.config, len(self.gram)
        observed = self.vectors[rows]
        weighted = observed * weights[:, :, None]
        matrix = np.matmul(weighted.transpose(0, 2, 1), observed) + config.unobserved * self.gram
        frequency = weights.sum(1) + config.unobserved * len(self.vectors)
        diagonal = np.arange(dim)
        matrix[:, diagonal, diagonal] += config.regularisation * frequency[:, None] ** config.exponent
        solved: FloatArray = np.linalg.solve(matrix, weighted.sum(1)[:, :, None])[:, :, 0]
        return solved

    def _blocks(self, lengths: IntArray) -> Iterator[tuple[IntArray, int]]:
        """Rows with any observation in blocks of like length, longest first: (B,) which, and the longest."""
        order = np.argsort(-lengths, kind="stable")
        order = order[: np.count_nonzero(lengths)]
        dim = len(self.gram)
        start = 0
        while start < len(order):
            width = int(lengths[order[start]])
            stop = start + max(1, self.block_values // (dim * (width + dim)))
            yield order[start:stop], width
            start = stop


def fit(name: str, config: MatrixFactorisationConfig, data: FitData) -> FoldedChannel:
    """Alternate between users and items."""
    seen = data.events.matrix()
    vectors = factorise(seen, config)
    users = np.asarray(seen.sum(0), np.float32).ravel()
    return FoldedChannel(name, config, vectors, users, LeastSquares.of(vectors, config))


def load(directory: Path) -> FoldedChannel:
    """Read what `save` wrote."""
    header = read_header(directory)
    config = MatrixFactorisationConfig.parse(header.config)
    vectors, users = load_items(directory)
    return FoldedChannel(header.name, config, vectors, users, LeastSquares.of(vectors, config))


def factorise(seen: sp.csr_matrix, config: MatrixFactorisationConfig) -> FloatArray:
    """(N, D) item vectors of a (U, N) matrix of ones."""
    by_user, by_item = _steps(seen), _steps(sp.csr_matrix(seen.T))
    rng = np.random.default_rng(config.seed)
    scale = _INITIAL_LENGTH / np.sqrt(config.dim)
    items: FloatArray = (scale * rng.standard_normal((seen.shape[1], config.dim))).astype(np.float32)
    for _ in range(config.iterations):
        users = LeastSquares.of(items, config)(by_user)
        items = LeastSquares.of(users, config)(by_item)
    return items


def _steps(matrix: sp.csr_matrix) -> SparseRows:
    return SparseRows(Ragged(matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)), matrix.data)


def _padded(steps: SparseRows, chosen: IntArray, width: int) -> tuple[IntArray, FloatArray]:
    """(B, width) rows and weights of the chosen ones; row 0 with weight 0 at the padding."""
    columns = steps.columns
    place = np.arange(width)
    inside = place < columns.lengths[chosen][:, None]
    places = np.where(inside, columns.offsets[chosen][:, None] + place, 0)
    weights = np.where(inside, steps.values[places], np.float32(0))
    return np.where(inside, columns.values[places], 0), weights
