"""The same answers by actors of Ray Data; each loads the release once and writes its blocks' files itself."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import ray.data

from recsys_ray.core.on_ray import cluster_cpus, quiet_data
from recsys_ray.retrieval.bulk.run import Work, Worker
from recsys_ray.retrieval.bulk.users import Block


def answer_on_ray(work: Work, blocks: list[Block]) -> Iterator[int]:
    """Answer the blocks with an actor a CPU of the cluster that this process is in; yields the users of each block."""
    most = max(1, min(cluster_cpus(), len(blocks)))
    with quiet_data():
        answered = ray.data.from_arrow([pa.Table.from_pylist([asdict(block)]) for block in blocks]).map_batches(
            _Actor,
            fn_constructor_kwargs={"work": work},
            batch_size=None,
            batch_format="pyarrow",
            # All from the start, but one is enough to go on: a small cluster is slower, it does not hang.
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),
            num_cpus=1,
        )
        batches: Iterable[Any] = answered.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for batch in batches:
            yield from batch.column("num_users").to_pylist()


class _Actor:
    def __init__(self, work: Work) -> None:
        self._worker = Worker(work)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return pa.table({"num_users": [self._worker.answer(Block(**row)) for row in batch.to_pylist()]})
