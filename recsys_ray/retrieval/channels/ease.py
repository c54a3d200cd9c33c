"""EASE: each item as a linear mix of the others, in closed form. Negative weights say what speaks against an item.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data".
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.progress import say
from recsys_ray.retrieval.channels.counting import co_occurrences, damped, item_weights, without_diagonal
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_table import ItemTableChannel, ItemTableConfig, load_item_table
from recsys_ray.retrieval.channels.ridge import inverse, rarer_half, solve_locally
from recsys_ray.retrieval.channels.settings import Search
from recsys_ray.retrieval.channels.table import Table, prune

_ROWS_AT_ONCE = 256


class EaseConfig(ItemTableConfig):
    """Ridge regression of each item on the others: B = I - P diag(1 / diag P), P = (X' W X + penalty I)^-1.

    Attributes:
        kind: Which channel this is.
        penalty: λ: how much the weights are held down.
        user_exponent: In W, a user of n items counts 1 / log2(2 + n) to this power.
        memory_bytes: The inverse takes 4 bytes a pair of items that have events. Where that is more than this, each
            item is regressed on the items alone that were met together with it most often.
        regressors: On so many of them.
    """

    kind: Literal["ease"] = "ease"
    decay: float = Field(0.8, gt=0, le=1)
    penalty: float = Field(200.0, gt=0)
    user_exponent: float = Field(1.0, ge=0)
    memory_bytes: int = Field(4 * 10**9, ge=0)
    regressors: int = Field(100, ge=1)
    search: Search = Field(
        default_factory=lambda: {
            "decay": (0.6, 0.7, 0.8, 0.9),
            "penalty": (50.0, 200.0, 800.0),
        }
    )


def fit(name: str, config: EaseConfig, data: FitData) -> ItemTableChannel:
    """Solve for all items at once, or for each by itself where memory is too small for that; which, is said."""
    known = np.flatnonzero(data.events.item_counts())
    needed = 4 * len(known) ** 2
    exact = needed <= config.memory_bytes
    how = "is solved" if exact else f"is too large: each item is regressed on {config.regressors} others"
    limit = f"{config.memory_bytes / 1e9:.2g} GB (memory_bytes)"
    say(f"{name}: the inverse of {len(known):,} items, {needed / 1e9:.2g} GB of at most {limit}, {how}")
    table = _exact(config, data, known) if exact else _local(config, data)
    return ItemTableChannel(name, config, table)


def load(directory: Path) -> ItemTableChannel:
    """Read what `save` wrote."""
    return load_item_table(directory, EaseConfig)


def _exact(config: EaseConfig, data: FitData, known: IntArray) -> Table:
    precision = inverse(co_occurrences(data, _weigh(config)), known, config.penalty)
    num_items = data.events.num_items
    weights = sp.vstack([prune(block, config.neighbours) for block in _weights(precision)], "csr")
    offsets = np.zeros(num_items + 1, np.int64)
    offsets[known + 1] = np.diff(weights.indptr)
    return Table.of(sp.csr_matrix((weights.data, known[weights.indices], np.cumsum(offsets)), (num_items, num_items)))


def _weights(precision: FloatArray) -> Iterator[sp.csr_matrix]:
    """Blocks of rows of B."""
    own = np.diag(precision).copy()
    for start in range(0, len(own), _ROWS_AT_ONCE):
        rows = precision[start : start + _ROWS_AT_ONCE] / -own
        rows[np.arange(len(rows)), start + np.arange(len(rows))] = 0
        yield sp.csr_matrix(rows)


def _local(config: EaseConfig, data: FitData) -> Table:
    rank = np.argsort(np.argsort(item_weights(data.events, _weigh(config)), kind="stable"))
    halves, others = [], []
    for block in co_occurrences(data, _weigh(config)):
        halves.append(rarer_half(block, rank))
        others.append(prune(without_diagonal(block)[1], config.regressors))
    solved = solve_locally(sp.vstack(halves, "csr"), rank, sp.vstack(others, "csr"), config.penalty)
    return Table.of(prune(sp.csr_matrix(solved.T), config.neighbours))


def _weigh(config: EaseConfig) -> partial[FloatArray]:
    return partial(damped, exponent=config.user_exponent)
