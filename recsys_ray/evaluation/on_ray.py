"""The replay spread over a Ray cluster: each task ranks a part of the questions, with results equal to one process."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import ray

from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.replay import Replay, pool, replay
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.retrieval.retriever import Retriever

Load = Callable[[Path], Retriever]
"""Reads a retriever from a saved artifact. A function of a module, so that workers can import it."""


def replay_on_ray(load: Load, path: Path, questions: Questions, config: EvaluationConfig, shards: int) -> Replay:
    """`recsys_ray.evaluation.replay.replay` in that many tasks; each holds `config.block_bytes`.

    Args:
        load: Reads the retriever.
        path: Where it was saved, readable from every node: channels travel as a path, never as arrays.
        questions: They lie once on each node.
        config: See there.
        shards: How many tasks.
    """
    reference = ray.put(questions)
    bounds = np.linspace(0, len(questions), max(1, min(shards, len(questions))) + 1).astype(int).tolist()
    rank_part = ray.remote(_rank_part)
    return pool(ray.get([rank_part.remote(load, path, reference, config, *bound) for bound in pairwise(bounds)]))


def _rank_part(load: Load, path: Path, questions: Questions, config: EvaluationConfig, start: int, stop: int) -> Replay:
    return replay(load(path), questions.slice(start, stop), config)
