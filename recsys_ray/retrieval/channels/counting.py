"""Counts over pairs of items, of which item-to-item tables are made.

They come in blocks of rows (items) whose size is bounded, so that a table that is pruned block by block never lies in
memory as a whole; each block is a sum over shards of users.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.shards import add_up

BLOCK_CELLS = 40_000_000  # a block is at most so many cells, 320 MB; several are in memory while they are summed

Block = tuple[int, sp.csr_matrix]
"""The first row and (rows, N) float32, in canonical form."""

UserWeights = Callable[[IntArray], FloatArray]
"""(U,) numbers of different items of users to what such a user counts. Picklable."""


def damped(lengths: IntArray, exponent: float) -> FloatArray:
    """Long histories say less about any two of their items: 1 / log2(2 + n)^exponent."""
    return np.asarray(np.log2(2.0 + lengths) ** -exponent, np.float32)


def shrinking(lengths: IntArray, exponent: float) -> FloatArray:
    """The share of one step of a random walk from the user: 1 / n^exponent."""
    return np.asarray(np.maximum(lengths, 1.0) ** -exponent, np.float32)


def item_users(events: Events) -> FloatArray:
    """(N,) float32: how many users met each item, 1 where none did."""
    return np.maximum(np.bincount(events.matrix().indices, minlength=events.num_items), 1).astype(np.float32)


def item_weights(events: Events, weigh: UserWeights) -> FloatArray:
    """(N,) float32: the weights of each item's users, added up; the diagonal of `co_occurrences`."""
    matrix = events.matrix()
    return np.asarray(matrix.T @ weigh(np.diff(matrix.indptr)), np.float32)


def co_occurrences(data: FitData, weigh: UserWeights) -> Iterator[Block]:
    """Blocks of the (N, N) matrix whose entry (i, j) adds up the weights of the users who met both i and j."""
    matrix = data.events.matrix()
    most = matrix.T @ np.diff(matrix.indptr).astype(np.float64)
    for start, stop in _blocks(most, data.events.num_items):
        yield start, data.over_shards(partial(_co_occurrences, weigh=weigh, start=start, stop=stop))


def _co_occurrences(shard: Events, weigh: UserWeights, start: int, stop: int) -> sp.csr_matrix:
    matrix = shard.matrix()
    weights = np.repeat(weigh(np.diff(matrix.indptr)), np.diff(matrix.indptr))
    weighted = sp.csr_matrix((matrix.data * weights, matrix.indices, matrix.indptr), matrix.shape)
    # A product's columns are in no order; turning it over sorts them in linear time.
    return sp.csr_matrix((sp.csr_matrix(weighted.T) @ matrix[:, start:stop]).T)


def visited_pairs(data: FitData, window: int, gap_exponent: float, transpose: float) -> Iterator[Block]:
    """Blocks of the (N, N) matrix of what follows what.

    Entry (i, j) adds up 1 / gap^exponent over all times that a user met j at most `window` steps after i, and
    `transpose` times the same over all times that j came before i.
    """
    most = data.events.item_counts() * (2.0 * window)
    count = partial(_visited_pairs, window=window, gap_exponent=gap_exponent, transpose=transpose)
    for start, stop in _blocks(most, data.events.num_items):
        yield start, data.over_shards(partial(count, start=start, stop=stop))


def _visited_pairs(
    shard: Events, window: int, gap_exponent: float, transpose: float, start: int, stop: int
) -> sp.csr_matrix:
    items = shard.items.astype(np.int32)
    places = np.flatnonzero((items >= start) & (items < stop))
    user = np.searchsorted(shard.offsets, places, "right") - 1
    before, after = places - shard.offsets[user], shard.offsets[user + 1] - 1 - places

    def at(gap: int) -> sp.csr_matrix:
        later = places[after >= gap]
        earlier = places[before >= gap] if transpose else places[:0]
        sources = np.concatenate([items[later], items[earlier]]) - start
        targets = np.concatenate([items[later + gap], items[earlier - gap]])
        values = np.repeat(np.array([1.0, transpose], np.float32), [len(later), len(earlier)]) * gap**-gap_exponent
        return sp.csr_matrix((values, (sources, targets)), (stop - start, shard.num_items), np.float32)

    longest = int(np.diff(shard.offsets).max(initial=0)) - 1
    # One gap at a time: memory holds the distinct pairs, never all pairs of the window.
    return add_up(at(gap) for gap in range(1, max(min(window, longest), 1) + 1))


def scaled(block: Block, sizes: FloatArray, source_exponent: float, target_exponent: float) -> sp.csr_matrix:
    """A block with entry (i, j) divided by sizes[i]^source_exponent and by sizes[j]^target_exponent; sizes (N,)."""
    start, counts = block
    rows = np.repeat(sizes[start : start + counts.shape[0]] ** -source_exponent, np.diff(counts.indptr))
    values = counts.data * rows * (sizes**-target_exponent)[counts.indices]
    return sp.csr_matrix((values, counts.indices, counts.indptr), counts.shape)


def without_diagonal(block: Block) -> Block:
    """An item does not lead to itself."""
    start, counts = block
    rows = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
    other = rows + start != counts.indices
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows[other], minlength=counts.shape[0]))])
    return start, sp.csr_matrix((counts.data[other], counts.indices[other], offsets), counts.shape)


def _blocks(most: FloatArray, num_items: int) -> list[tuple[int, int]]:
    """Ranges of rows of at most `BLOCK_CELLS` entries, one row at least; row i has at most `most[i]` entries."""
    cells = np.concatenate([[0], np.cumsum(np.minimum(most, num_items))])
    bounds = [0]
    while bounds[-1] < num_items:
        last = int(np.searchsorted(cells, cells[bounds[-1]] + BLOCK_CELLS, "right")) - 1
        bounds.append(min(max(last, bounds[-1] + 1), num_items))
    return list(pairwise(bounds))
