"""Counting over a Ray cluster: each task counts the events of one shard of users."""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import ray
import scipy.sparse as sp

from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.shards import CountShard, user_shards, users_between


def map_on_ray(count: CountShard, events: Events) -> Iterator[sp.csr_matrix]:
    """The `MapShards` of a cluster that this process is in: `FitData(events, …, map_shards=map_on_ray)`.

    The results come in the order of the shards and equal those of `in_this_process` to the last bit. The events lie
    once on each node; as many shards as the cluster has CPUs are counted or wait to be added. A task may use it too
    (Ray lends its CPU to those it waits for), but where many channels or trials are fitted side by side, counting in
    their own processes keeps the cluster as busy.
    """
    bounds = user_shards(events)
    if len(bounds) == 1:
        yield count(events)
        return
    reference, task = ray.put(events), ray.remote(_count)
    resources: Callable[[], dict[str, float]] = ray.cluster_resources
    ahead = max(1, int(resources().get("CPU", 1)))
    waiting: deque[Any] = deque()
    for start, stop in bounds:
        if len(waiting) == ahead:
            yield ray.get(waiting.popleft())
        waiting.append(task.remote(count, reference, start, stop))
    while waiting:
        yield ray.get(waiting.popleft())


def _count(count: CountShard, events: Events, start: int, stop: int) -> sp.csr_matrix:
    return count(users_between(events, start, stop))
