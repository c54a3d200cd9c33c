"""Graph embedding: item vectors smoothed over the graph of users and items (LightGCN), and users as sums of items.

He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network for Recommendation". With R the (U, N)
matrix of who met what, normalised by the square roots of both degrees, and E the (N, D) free vectors of the items,
LightGCN's layers pass E from items to users (R E), back to items (R' R E) and so on, and a vector is the mean of its
layers. Here users have no free vectors. With an odd number of layers the mean of a user's layers is then R times that
of the items, for each user the sum of the items' vectors divided by the square roots of their degrees, up to a length
that changes no order. So any history can be asked, new ones too, by exactly the sum that was trained.

Three changes to the paper make it better and far faster, see `graph_training`: the loss is a softmax over many items
shared by a batch (Wu et al. 2022, "On the Effectiveness of Sampled Softmax Loss for Item Recommendation") of cosines
divided by a temperature; a user is the sum of some items and is asked for the others, never for one that is in the sum;
and of all steps the moving average is kept.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from recsys_ray.core import metrics
from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.config import override
from recsys_ray.core.errors import NotApplicable
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.fit_data import FitData, ValidationPairs
from recsys_ray.retrieval.channels.folded import FoldedChannel, load_items
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig
from recsys_ray.retrieval.channels.table import SparseRows

_DEPTH = 100
_MAX_PAIRS = 2000
_LONGEST = 1000


@dataclass(frozen=True)
class NormalisedSum:
    """The sum of the vectors of a history's items, each divided by the square root of its degree, at unit length.

    Attributes:
        vectors: (N, D) float32.
        scale: (N,) float32 what each item counts, see `degree_scale`.
    """

    vectors: FloatArray
    scale: FloatArray

    def __call__(self, steps: SparseRows) -> FloatArray:
        """See `Fold`."""
        columns = steps.columns
        weights = steps.values * self.scale[columns.values]
        shape = (len(columns), len(self.vectors))
        summed = sp.csr_matrix((weights, columns.values, columns.offsets), shape) @ self.vectors
        unit: FloatArray = summed / np.maximum(np.linalg.norm(summed, axis=1, keepdims=True), 1e-12)
        return unit


def fit(name: str, config: GraphEmbeddingConfig, data: FitData) -> FoldedChannel:
    """Train, and stop by validation where there is one; the channel's settings hold the epochs that it took.

    Raises:
        NotApplicable: When no user met two items.
    """
    from recsys_ray.encoders.threads import torch_threads
    from recsys_ray.retrieval.channels.graph_training import Graph, train

    seen = data.events.matrix()
    if np.diff(seen.indptr).max(initial=0) < 2:
        raise NotApplicable(f"channel {name!r}: graph embedding learns from users who met two items; there are none")
    users = np.bincount(seen.indices, minlength=seen.shape[1]).astype(np.float32)

    graph, pairs = Graph.of(seen, degree_scale(users)), _sample(data.validation)

    def channel(vectors: FloatArray, config: GraphEmbeddingConfig) -> FoldedChannel:
        return FoldedChannel(name, config, vectors, users, NormalisedSum(vectors, graph.scale))

    # Judged as it is trained, all steps alike: what a query may set without a new fit must not decide here.
    judged = override(config, {"decay": 1.0, "history": _LONGEST})
    # One thread is what small products are fastest with, and the same on every machine.
    with torch_threads(1):
        vectors, epochs = train(graph, config, None if pairs is None else lambda v: _quality(channel(v, judged), pairs))
    return channel(vectors, override(config, {"epochs": epochs}))


def load(directory: Path) -> FoldedChannel:
    """Read what `save` wrote."""
    header = read_header(directory)
    vectors, users = load_items(directory)
    config = GraphEmbeddingConfig.parse(header.config)
    return FoldedChannel(header.name, config, vectors, users, NormalisedSum(vectors, degree_scale(users)))


def degree_scale(users: FloatArray) -> FloatArray:
    """What an item that so many users met counts in a sum: 1 / sqrt(users), 0 where there are none, (N,)."""
    scale: FloatArray = np.where(users > 0, np.maximum(users, 1) ** -0.5, 0).astype(np.float32)
    return scale


def _sample(pairs: ValidationPairs | None) -> ValidationPairs | None:
    if pairs is None or not len(pairs.items):
        return None
    count = min(len(pairs.items), _MAX_PAIRS)
    return pairs.take(np.linspace(0, len(pairs.items) - 1, count).astype(np.int64))


def _quality(channel: FoldedChannel, pairs: ValidationPairs) -> float:
    """Mean ndcg@100: smoother than what looks at fewer places."""
    found, owner = channel.retrieve(pairs.queries(), _DEPTH), pairs.items.row_of_value
    ranks = metrics.list_ranks(found.rows[owner], found.scores[owner], pairs.items.values)
    return float(metrics.ndcg(ranks, owner, len(pairs.items), _DEPTH).mean())
