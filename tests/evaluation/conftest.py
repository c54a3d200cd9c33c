"""A retriever of two dense channels whose scores often tie, and random questions for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.data.dataset import Targets
from recsys_ray.evaluation.questions import Questions
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.retriever import Retriever


@dataclass(frozen=True)
class DenseChannel:
    """Scores an item by what the history's items say of it, zero meaning nothing."""

    name: str
    table: FloatArray
    reads: Reads = field(default=frozenset({"history"}))

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        sums = [self.table[queries.history[row]].sum(0) for row in range(len(queries))]
        scores = np.array(sums, np.float32).reshape(len(queries), self.table.shape[1])
        scores[scores <= 0] = -np.inf
        return queries.mask_excluded(scores)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        return top_k(self.scores(queries), k)

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        np.save(directory / "table.npy", self.table)


def _retriever(seed: int, num_items: int, levels: int = 3, depth: int = 20) -> Retriever:
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, levels, (2, num_items, num_items)).astype(np.float32)
    channels = {name: DenseChannel(name, table) for name, table in zip(("first", "second"), tables, strict=True)}
    return Retriever(channels, (), Fusion(method="reciprocal_rank", depth=depth, weights={"first": 1.0, "second": 0.5}))


def _targets(seed: int, num_queries: int, num_items: int) -> Targets:
    """Histories that repeat items, and one to four distinct targets a query, some of them in its own history."""
    rng = np.random.default_rng(seed + 1)
    history = Ragged.of([rng.integers(0, num_items, rng.integers(0, 6)) for _ in range(num_queries)])
    sizes = rng.integers(1, min(5, num_items + 1), num_queries)
    items = Ragged.of([rng.choice(num_items, size, replace=False) for size in sizes])
    users: IntArray = rng.integers(0, max(num_queries // 2, 1), num_queries)
    return Targets(users, history, history, items, history.lengths == 0)


@pytest.fixture(scope="session")
def make_retriever() -> Callable[..., Retriever]:
    return _retriever


@pytest.fixture(scope="session")
def make_targets() -> Callable[..., Targets]:
    return _targets


@pytest.fixture(scope="session")
def make_questions() -> Callable[..., Questions]:
    """Questions of `make_targets`, every item with one training event unless said otherwise."""

    def make(seed: int, num_queries: int, num_items: int, train_counts: IntArray | None = None) -> Questions:
        counts = np.ones(num_items, np.int64) if train_counts is None else train_counts
        return Questions("test", _targets(seed, num_queries, num_items), counts)

    return make
