"""The replay spread over a Ray cluster: each task ranks a part of the queries, with results equal to one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import ray

from recsys_ray.core.arrays import IntArray
from recsys_ray.data.dataset import Fold, Targets
from recsys_ray.evaluation.replay import EvaluationConfig, Replay, pool, replay, slice_targets
from recsys_ray.evaluation.summary import Evaluation, evaluate_with
from recsys_ray.retrieval.retriever import Retriever

Load = Callable[[Path], Retriever]
"""Reads a retriever from a saved artifact. A function of a module, so that workers can import it."""


@dataclass(frozen=True)
class Questions:
    """What every task of one replay reads; it lies once on each node. See `recsys_ray.evaluation.replay.replay`."""

    targets: Targets
    train_counts: IntArray
    config: EvaluationConfig
    user_tokens: IntArray | None


def evaluate_on_ray(
    load: Load,
    paths: Sequence[Path],
    folds: Sequence[Fold],
    config: EvaluationConfig,
    user_tokens: IntArray | None = None,
) -> Evaluation:
    """`recsys_ray.evaluation.summary.evaluate`, each replay in `config.shards` tasks.

    Args:
        load: Reads a retriever.
        paths: Where each fold's retriever was saved, readable from every node.
        folds: In the same order.
        config: See there.
        user_tokens: (U, T) attribute tokens of all users; None or T = 0 when users have no attributes.
    """

    def rank(fold: int, targets: Targets, train_counts: IntArray) -> Replay:
        return replay_on_ray(load, paths[fold], Questions(targets, train_counts, config, user_tokens))

    return evaluate_with(rank, folds, config)


def replay_on_ray(load: Load, path: Path, questions: Questions) -> Replay:
    """Rank in `config.shards` tasks; channels travel as a path, never as arrays."""
    reference = ray.put(questions)
    shards = max(1, min(questions.config.shards, len(questions.targets)))
    bounds = np.linspace(0, len(questions.targets), shards + 1).astype(int).tolist()
    rank_part = ray.remote(_rank_part)
    tasks = [rank_part.remote(load, path, reference, start, stop) for start, stop in pairwise(bounds)]
    return pool(ray.get(tasks))


def _rank_part(load: Load, path: Path, questions: Questions, start: int, stop: int) -> Replay:
    part = slice_targets(questions.targets, start, stop)
    return replay(load(path), part, questions.train_counts, questions.config, questions.user_tokens)
