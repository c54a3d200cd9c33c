"""Training of the graph embedding: propagation over the graph, and a softmax over items that a batch shares."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig

_FIRST_LENGTH = 0.1
_NEWEST_SHARE = 0.01  # of the moving average over steps

Judge = Callable[[FloatArray], float]
"""How good (N, D) item vectors are on validation."""


@dataclass(frozen=True)
class WeightedSums:
    """A sparse (R, C) matrix to multiply with.

    On CPUs torch's fused sums of embeddings take a tenth of the time of its, or of scipy's, sparse products.

    Attributes:
        columns: (nnz,) int64.
        starts: (R,) int64 where each row begins.
        values: (nnz,) float32.
    """

    columns: Tensor
    starts: Tensor
    values: Tensor

    @classmethod
    def of(cls, matrix: sp.csr_matrix) -> "WeightedSums":
        """From a scipy matrix."""
        parts = matrix.indices.astype(np.int64), matrix.indptr[:-1].astype(np.int64), matrix.data.astype(np.float32)
        return cls(*map(torch.from_numpy, parts))

    def __matmul__(self, dense: Float[Tensor, "C D"]) -> Float[Tensor, "R D"]:
        return functional.embedding_bag(self.columns, dense, self.starts, mode="sum", per_sample_weights=self.values)


@dataclass(frozen=True)
class Graph:
    """Users and the items that they met.

    Attributes:
        histories: The items of each user, each once.
        scale: (N,) float32 what each item counts in a sum: 1 / sqrt(its users), 0 where there are none.
        to_users: (U, N) from items to users, divided by the square roots of both degrees.
        to_items: Its transpose.
    """

    histories: Ragged
    scale: FloatArray
    to_users: WeightedSums
    to_items: WeightedSums

    @classmethod
    def of(cls, seen: sp.csr_matrix, scale: FloatArray) -> "Graph":
        """From a (U, N) matrix of ones."""
        histories = Ragged(seen.indices.astype(np.int64), seen.indptr.astype(np.int64))
        of_user = np.maximum(histories.lengths, 1) ** -0.5
        scaled = sp.csr_matrix(sp.diags(of_user) @ seen @ sp.diags(scale))
        return cls(histories, scale, WeightedSums.of(scaled), WeightedSums.of(sp.csr_matrix(scaled.T)))

    def propagate(self, items: Float[Tensor, "N D"], hops: int) -> Float[Tensor, "N D"]:
        """The mean of the items' layers. Linear and symmetric: a gradient goes back through it by going through it."""
        layer = total = items
        for _ in range(hops):
            layer = self.to_items @ (self.to_users @ layer)
            total = total + layer
        return total / (hops + 1)


@dataclass(frozen=True)
class Batch:
    """B users, each of whose items is an input or a target.

    Attributes:
        inputs: The items whose sum the user is.
        targets: Those that are asked for.
        negatives: (M,) rising rows of the items that all targets stand against.
        met: (B, M) whether the user met the negative, which then does not count.
        share: Of all items that somebody met, how many are negatives.
    """

    inputs: Ragged
    targets: Ragged
    negatives: IntArray
    met: BoolArray
    share: float

    @classmethod
    def draw(
        cls, histories: Ragged, known: IntArray, config: GraphEmbeddingConfig, rng: np.random.Generator
    ) -> "Batch":
        """Of users with two items at least.

        Args:
            histories: Their items, each once.
            known: The rows that negatives are drawn from, rising.
            config: How many targets and negatives.
            rng: Of the draw.
        """
        asked = _some_of_each(histories.lengths, config.targets, rng)
        count = min(config.negatives, len(known))
        negatives = np.sort(rng.choice(known, count, replace=False)) if count < len(known) else known
        place = np.minimum(np.searchsorted(negatives, histories.values), count - 1)
        drawn = negatives[place] == histories.values
        met = np.zeros((len(histories), count), bool)
        met[histories.row_of_value[drawn], place[drawn]] = True
        return cls(histories.where(~asked), histories.where(asked), negatives, met, count / len(known))


def train(graph: Graph, config: GraphEmbeddingConfig, judge: Judge | None) -> tuple[FloatArray, int]:
    """Train the items' vectors.

    Args:
        graph: Who met what; some user met two items.
        config: Settings.
        judge: Decides when to stop, unless the settings do.

    Returns:
        (N, D) float32 unit vectors, zeros for items that nobody met, and the epochs they took.
    """
    training = _Training(graph, config)
    best, quality, taken = None, -np.inf, 0
    for epoch in range(1, (config.epochs or config.max_epochs) + 1):
        training.epoch()
        if judge is None or config.epochs is not None:
            continue
        vectors = training.items()
        now = judge(vectors)
        if now > quality:
            best, quality, taken = vectors, now, epoch
        elif epoch - taken >= config.patience:
            break
    return (training.items(), epoch) if best is None else (best, taken)


def softmax_loss(
    items: Float[Tensor, "N D"], scale: Float[Tensor, " N"], batch: Batch, temperature: float
) -> Float[Tensor, ""]:
    """Mean cross entropy of each target against the items that its user did not meet and the user's other targets.

    Args:
        items: Unit vectors.
        scale: See `Graph.scale`.
        batch: Users. The drawn negatives stand for all items: their sum is divided by `share`, which leaves no bias
            in the sum (Jean et al. 2015, "On Using Very Large Target Vocabulary for Neural Machine Translation").
        temperature: Cosines are divided by it.
    """
    inputs, starts, targets = map(torch.from_numpy, (batch.inputs.values, batch.inputs.offsets, batch.targets.values))
    owner = torch.from_numpy(batch.targets.row_of_value)
    summed = functional.embedding_bag(inputs, items, starts[:-1], mode="sum", per_sample_weights=scale[inputs])
    users = functional.normalize(summed)
    # A cosine is at most 1, so that taking 1 off keeps every power at 1 or below.
    wanted = ((users.index_select(0, owner) * items.index_select(0, targets)).sum(1) - 1) / temperature
    drawn = items.index_select(0, torch.from_numpy(batch.negatives))
    others = ((users @ drawn.T - 1) / temperature).exp().masked_fill(torch.from_numpy(batch.met), 0)
    total = (others.sum(1) / batch.share).index_add(0, owner, wanted.exp())
    return (total.log().index_select(0, owner) - wanted).mean()


class _Training:
    """Free vectors of the items, and their moving average over the steps, which is what is used of them."""

    def __init__(self, graph: Graph, config: GraphEmbeddingConfig) -> None:
        self._graph, self._config = graph, config
        self._rng = np.random.default_rng(config.seed)
        self._known = np.flatnonzero(graph.scale)
        self._scale = torch.from_numpy(graph.scale)
        first = np.zeros((len(graph.scale), config.dim), np.float32)
        first[self._known] = _FIRST_LENGTH * self._rng.standard_normal((len(self._known), config.dim))
        self._vectors = torch.nn.Parameter(torch.from_numpy(first))
        self._average = torch.zeros_like(self._vectors, requires_grad=False)
        self._optimizer = torch.optim.Adam([self._vectors], config.learning_rate)
        self._steps = 0

    def epoch(self) -> None:
        """One pass over the users that have two items, in a random order."""
        users = self._rng.permutation(np.flatnonzero(self._graph.histories.lengths >= 2))
        for start in range(0, len(users), self._config.batch_users):
            histories = self._graph.histories.take(users[start : start + self._config.batch_users])
            self._step(Batch.draw(histories, self._known, self._config, self._rng))

    def items(self) -> FloatArray:
        """(N, D) unit vectors."""
        vectors: FloatArray = functional.normalize(self._graph.propagate(self._average, self._config.hops)).numpy()
        return vectors

    def _step(self, batch: Batch) -> None:
        hops = self._config.hops
        layers = self._graph.propagate(self._vectors.detach(), hops).requires_grad_()
        loss = softmax_loss(functional.normalize(layers), self._scale, batch, self._config.temperature)
        (gradient,) = torch.autograd.grad(loss, layers)
        self._vectors.grad = self._graph.propagate(gradient, hops)
        self._optimizer.step()
        self._steps += 1
        self._average.lerp_(self._vectors.detach(), max(_NEWEST_SHARE, 1 / self._steps))


def _some_of_each(lengths: IntArray, share: float, rng: np.random.Generator) -> BoolArray:
    """A random share of each row's values, but one at least, and not all; (sum of lengths,)."""
    counts = np.clip(rng.binomial(lengths, share), 1, lengths - 1)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    shuffled = np.lexsort((rng.random(len(owner)), owner))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    chosen: BoolArray = np.zeros(len(owner), bool)
    chosen[shuffled] = place < counts[owner]
    return chosen
