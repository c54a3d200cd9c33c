"""Sums over shards of users, the same to the last bit in one process and on a cluster of any size.

For that, the shards depend on the events alone, and their results are added in one order.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

import numpy as np
import scipy.sparse as sp

from recsys_ray.core.events import Events

SHARD_EVENTS = 250_000

CountShard = Callable[[Events], sp.csr_matrix]
"""What is summed: counts of the events of some users. Picklable, for it may run elsewhere."""

MapShards = Callable[[CountShard, Events], Iterable[sp.csr_matrix]]
"""Calls a function on every shard and gives the results in the order of the shards."""


def in_this_process(count: CountShard, events: Events) -> Iterator[sp.csr_matrix]:
    """The `MapShards` that needs no cluster: one shard after the other."""
    return (count(users_between(events, start, stop)) for start, stop in user_shards(events))


def user_shards(events: Events) -> list[tuple[int, int]]:
    """Ranges of users with about `SHARD_EVENTS` events each; one range at least, empty when there are no users."""
    marks = np.arange(0, len(events), SHARD_EVENTS)
    starts = np.unique(np.searchsorted(events.offsets[:-1], marks))
    bounds = np.unique(np.concatenate([[0], starts, [events.num_users]])).tolist()
    return list(pairwise(bounds)) or [(0, 0)]


def users_between(events: Events, start: int, stop: int) -> Events:
    """The events of users `start` up to `stop`, numbered from 0."""
    first, last = events.offsets[start], events.offsets[stop]
    return Events(
        events.offsets[start : stop + 1] - first,
        events.items[first:last],
        events.timestamps[first:last],
        events.weights[first:last],
        events.num_items,
    )


def add_up(parts: Iterable[sp.csr_matrix]) -> sp.csr_matrix:
    """The sum of one part at least, all in canonical form.

    Pairwise, as if merging: sums of 1, 2, 4, … parts wait for their equal, so that each value is copied log2(parts)
    times and not once a part.
    """
    sums: list[tuple[int, sp.csr_matrix]] = []
    for part in parts:
        total, size = part, 1
        while sums and sums[-1][0] == size:
            total, size = sums.pop()[1] + total, 2 * size
        sums.append((size, total))
    total = sums.pop()[1]
    while sums:
        total = sums.pop()[1] + total
    return total
