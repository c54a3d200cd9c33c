"""Recall, latency and bytes of candidates, all measured in one process on the questions of validation."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.metrics import METRICS, list_ranks
from recsys_ray.core.progress import track
from recsys_ray.encoders.threads import torch_threads
from recsys_ray.retrieval.query import Queries
from tune.candidates import Candidate, K, Trained

RECALL = f"recall@{K}"
T = TypeVar("T")
BLOCKS, QUERIES = 5, 100
_WARM_UP = 5


@dataclass(frozen=True)
class Measured:
    """One candidate as measured.

    Attributes:
        recall: recall@100 of its list, before any other channel.
        p50_ms: Median time of one query, encoded and searched; the median of the blocks.
        p95_ms: 95th percentile, the median of the blocks.
        searched_bytes: File that a search reads through.
        disk_bytes: All files of the channel: vectors to score exactly with, and whole ones to read histories with.
        encoder_bytes: All files of the towers.
        num_items: N.
    """

    recall: float
    p50_ms: float
    p95_ms: float
    searched_bytes: int
    disk_bytes: int
    encoder_bytes: int
    num_items: int

    @property
    def num_bytes(self) -> int:
        """What has to be in memory for a query to be fast: the searched file and the encoder."""
        return self.searched_bytes + self.encoder_bytes


def measure(candidates: Sequence[Candidate]) -> list[Measured]:
    """Measure all of them, in their order."""
    encoded = {id(one.trained): _encoded(one.trained) for one in candidates}
    recalls = [
        _recall(one, encoded[id(one.trained)]) for one in track(candidates, "Recall of each", total=len(candidates))
    ]
    times = _times(candidates)
    sizes = [one.file_bytes() for one in candidates]
    return [
        Measured(recall, p50, p95, searched, disk, one.trained.num_bytes, len(one.trained.vectors))
        for one, recall, (p50, p95), (searched, disk) in zip(candidates, recalls, times, sizes, strict=True)
    ]


def _encoded(trained: Trained) -> Queries:
    queries = trained.questions.queries()
    return queries.with_vectors(trained.encoder.encode(queries))


def _recall(candidate: Candidate, queries: Queries) -> float:
    targets = candidate.trained.questions.targets
    found = candidate.channel().retrieve(queries, K)
    owner = targets.items.row_of_value
    ranks = list_ranks(found.rows[owner], found.scores[owner], targets.items.values)
    return float(METRICS[RECALL](ranks, owner, len(targets)).mean())


def _times(candidates: Sequence[Candidate]) -> list[tuple[float, float]]:
    """Median and 95th percentile in milliseconds: blocks of single queries, the candidates taking turns in each.

    Candidates of one training encode alike: in each block a query is encoded once for all of them, and its time counts
    for each.
    """
    trained = {id(one.trained): one.trained for one in candidates}
    asked = {key: _single_queries(one) for key, one in trained.items()}
    percentiles = np.zeros((BLOCKS, len(candidates), 2))
    places = np.arange(len(candidates))
    with torch_threads(1):
        for block in track(range(BLOCKS), "Timing single queries", total=BLOCKS):
            encoded = {key: _encode_each(one, asked[key]) for key, one in trained.items()}
            for place in np.roll(places, block * max(1, len(candidates) // BLOCKS)).tolist():
                queries, encode_ms = encoded[id(candidates[place].trained)]
                total_ms = encode_ms + _search_each(candidates[place], queries)
                percentiles[block, place] = np.percentile(total_ms, (50, 95))
    return [(float(p50), float(p95)) for p50, p95 in np.median(percentiles, axis=0)]


def _encode_each(trained: Trained, asked: Sequence[Queries]) -> tuple[list[Queries], FloatArray]:
    """The queries with their vectors, and the milliseconds that each took."""
    return _timed([*asked[:_WARM_UP], *asked], lambda one: one.with_vectors(trained.encoder.encode(one)))


def _search_each(candidate: Candidate, encoded: Sequence[Queries]) -> FloatArray:
    channel = candidate.channel()
    return _timed([*encoded[:_WARM_UP], *encoded], lambda one: channel.retrieve(one, K))[1]


def _timed(asked: Sequence[Queries], answer: Callable[[Queries], T]) -> tuple[list[T], FloatArray]:
    """The answers and their milliseconds, without those that warm up."""
    answers, milliseconds = [], np.zeros(len(asked), np.float32)
    for place, one in enumerate(asked):
        begin = time.perf_counter_ns()
        answers.append(answer(one))
        milliseconds[place] = (time.perf_counter_ns() - begin) / 1e6
    kept = min(_WARM_UP, len(asked) // 2)
    return answers[kept:], milliseconds[kept:]


def _single_queries(trained: Trained) -> list[Queries]:
    rows = np.linspace(0, len(trained.questions) - 1, min(QUERIES, len(trained.questions))).astype(np.int64)
    return [trained.questions.slice(row, row + 1).queries() for row in rows.tolist()]
