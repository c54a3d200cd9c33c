"""Ask every evaluation query again, offline, and note where its targets stand: full ranking, never sampled.

Single channels are ranked by `Channel.scores` over the whole catalogue, ties at their mean rank. The fused list is what
serving would answer: the retriever's own lists, joined by the same `combine`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.metrics import RankArray, list_ranks, mean_ranks, novelty
from recsys_ray.core.progress import track
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.channel import Source
from recsys_ray.retrieval.fusion import Fusion, combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.retriever import Retriever

FUSED = "fused"
BUCKETS = ("head", "mid", "tail", "cold")
SHOWN = 10
_BYTES_PER_SCORE = 4 + 1 + 3  # a score (float32), a mask while channels fill it, and what they add up at the side
_BYTES_PER_CANDIDATE = 100  # a dozen arrays of the fusion
_BYTES_PER_SOURCE = 12  # rank (int64) and score (float32) of a candidate in one channel


def without(channel: str) -> str:
    """The name of the fused ranking that leaves a channel out. No channel can be called so."""
    return f"{FUSED} without {channel}"


@dataclass(frozen=True)
class Replay:
    """Where T targets of Q queries stand in every ranking.

    Attributes:
        users: (Q,) user row of each query; the same user may come in several folds.
        new_users: (Q,) whether the user has no training event.
        queries: (T,) the query of each target.
        items: (T,) its item row.
        buckets: (T,) popularity bucket of each target, an index into `BUCKETS`.
        ranks: Ranking (channel name, "fused", or `without` a channel) to (T,) ranks from 0; infinity where the target
            was not retrieved.
        shown: Ranking to (Q, 10) the first items of each query, -1 where there are fewer.
        novelty: Ranking to (Q,) mean self-information of what is shown, in bits; NaN where nothing is.
        num_items: N.
    """

    users: IntArray
    new_users: BoolArray
    queries: IntArray
    items: IntArray
    buckets: IntArray
    ranks: dict[str, RankArray]
    shown: dict[str, IntArray]
    novelty: dict[str, RankArray]
    num_items: int

    @property
    def num_queries(self) -> int:
        """Q."""
        return len(self.users)

    def select(self, mask: BoolArray) -> "Replay":
        """Only the targets under a (T,) mask, and only the queries that still have one."""
        kept, queries = np.unique(self.queries[mask], return_inverse=True)
        return Replay(
            self.users[kept],
            self.new_users[kept],
            queries.astype(np.int64),
            self.items[mask],
            self.buckets[mask],
            {name: ranks[mask] for name, ranks in self.ranks.items()},
            {name: rows[kept] for name, rows in self.shown.items()},
            {name: values[kept] for name, values in self.novelty.items()},
            self.num_items,
        )


def replay(retriever: Retriever, questions: Questions, config: EvaluationConfig) -> Replay:
    """Rank the whole catalogue for every question, by every channel and fused.

    Args:
        retriever: Fitted on the events that `questions.train_counts` counts.
        questions: What is asked, and what should be found.
        config: Block size and bucket limits; sample with `Questions.sample` first.

    Raises:
        ConfigError: When a channel has the name that is kept for the fused ranking.
        DataError: When a channel gives scores of a wrong shape or NaN.
    """
    if FUSED in retriever.channels:
        raise ConfigError(f"channels.{FUSED}", FUSED, "any other name", "It is kept for the fused ranking.")
    counts = questions.train_counts
    size = block_size(len(retriever.channels), retriever.fusion.depth, len(counts), config)
    starts = range(0, len(questions), size)
    parts = [
        _replay_block(retriever, questions.slice(start, start + size))
        for start in track(starts, f"Ranking: {questions.label}", total=len(starts))
    ]
    names = [*retriever.channels, FUSED, *map(without, questions.without)]
    shown = {name: np.concatenate([_NONE_SHOWN, *(shown[name] for _, shown in parts)]) for name in names}
    targets = questions.targets
    return Replay(
        targets.users,
        targets.new_users,
        targets.items.row_of_value,
        targets.items.values,
        popularity_buckets(counts, config)[targets.items.values],
        {name: np.concatenate([np.zeros(0), *(ranks[name] for ranks, _ in parts)]) for name in names},
        shown,
        {name: novelty(rows, SHOWN, counts) for name, rows in shown.items()},
        len(counts),
    )


def block_size(channels: int, depth: int, num_items: int, config: EvaluationConfig) -> int:
    """How many questions are ranked at once within `config.block_bytes`.

    A question holds its scores by one channel, then the lists of all channels, `depth` deep, while they fuse.
    """
    fusing = channels * depth * (_BYTES_PER_CANDIDATE + channels * _BYTES_PER_SOURCE)
    return max(1, config.block_bytes // max(num_items * _BYTES_PER_SCORE, fusing, 1))


def pool(replays: Sequence[Replay]) -> Replay:
    """Several replays (folds, or shards of one) as one; all have the same rankings and catalogue.

    Raises:
        DataError: When there is none, or their rankings differ.
    """
    if not replays:
        raise DataError("there is nothing to evaluate: the dataset has no folds")
    first = replays[0]
    if any(list(other.ranks) != list(first.ranks) for other in replays):
        raise DataError(f"folds can only be pooled when all have the same channels; the first has {list(first.ranks)}")
    starts = np.cumsum([0, *(part.num_queries for part in replays)])
    return Replay(
        np.concatenate([part.users for part in replays]),
        np.concatenate([part.new_users for part in replays]),
        np.concatenate([part.queries + start for part, start in zip(replays, starts, strict=False)]),
        np.concatenate([part.items for part in replays]),
        np.concatenate([part.buckets for part in replays]),
        {name: np.concatenate([part.ranks[name] for part in replays]) for name in first.ranks},
        {name: np.concatenate([part.shown[name] for part in replays]) for name in first.ranks},
        {name: np.concatenate([part.novelty[name] for part in replays]) for name in first.ranks},
        first.num_items,
    )


def popularity_buckets(train_counts: IntArray, config: EvaluationConfig) -> IntArray:
    """(N,) index into `BUCKETS`: by the share of training events that strictly more popular items hold.

    Items with equal counts share a bucket.
    """
    counts, position = np.unique(-train_counts, return_inverse=True)
    events = np.bincount(position, minlength=len(counts)) * -counts
    share_above = ((np.cumsum(events) - events) / max(int(train_counts.sum()), 1))[position]
    bucket = np.where(share_above >= 1 - config.tail_share, 2, 1)
    bucket = np.where(share_above < config.head_share, 0, bucket)
    return np.where(train_counts == 0, 3, bucket).astype(np.int64)


_NONE_SHOWN = np.zeros((0, SHOWN), np.int64)
_Block = tuple[dict[str, RankArray], dict[str, IntArray]]


def _replay_block(retriever: Retriever, questions: Questions) -> _Block:
    queries, items = retriever.encode(questions.queries()), questions.targets.items
    ranks: dict[str, RankArray] = {}
    shown: dict[str, IntArray] = {}
    lists: dict[str, Candidates] = {}
    for name, channel in retriever.channels.items():
        scores = _checked_scores(name, channel, queries, len(questions.train_counts))
        ranks[name] = mean_ranks(scores, items.values, items.row_of_value)
        shown[name] = top_k(scores, SHOWN).rows
        lists[name] = _list(channel, queries, scores, retriever.fusion.depth)
    ranks[FUSED], shown[FUSED] = _fuse(lists, retriever.fusion, items)
    for name, fusion in questions.without.items():
        others = {other: candidates for other, candidates in lists.items() if other != name}
        ranks[without(name)], shown[without(name)] = _fuse(others, fusion, items)
    return ranks, shown


def _list(channel: Source, queries: Queries, scores: FloatArray, depth: int) -> Candidates:
    """What the channel answers: by its contract the top of its scores, up to the recall of an index of vectors."""
    return channel.retrieve(queries, depth) if "vectors" in channel.reads else top_k(scores, depth)


def _fuse(lists: dict[str, Candidates], fusion: Fusion, items: Ragged) -> tuple[RankArray, IntArray]:
    """(T,) ranks of the targets in the merged lists, and (Q, 10) the first items."""
    # All candidates are kept, so that a tie across the cut still counts at its mean rank.
    depth = sum(candidates.rows.shape[1] for candidates in lists.values())
    fused = combine(lists, fusion, max(depth, SHOWN)).candidates
    ranks = _ranks(
        items, len(fused), lambda owner, targets: list_ranks(fused.rows[owner], fused.scores[owner], targets)
    )
    return ranks, fused.rows[:, :SHOWN]


def _checked_scores(name: str, channel: Source, queries: Queries, num_items: int) -> FloatArray:
    scores = channel.scores(queries)
    expected = (len(queries), num_items)
    if scores.shape != expected:
        raise DataError(f"channel {name!r} gave scores of shape {scores.shape}; expected {expected} (queries, items)")
    if np.isnan(scores.min(initial=np.inf)):  # one NaN makes the minimum NaN
        raise DataError(f"channel {name!r} gave {int(np.isnan(scores).sum())} scores that are NaN; fit it again")
    return scores


def _ranks(items: Ragged, num_queries: int, rank: Callable[[IntArray, IntArray], RankArray]) -> RankArray:
    """(T,) ranks, over at most as many targets at a time as the block has queries: each copies its query's ranking."""
    owner, step = items.row_of_value, max(num_queries, 1)
    parts = [
        rank(owner[start : start + step], items.values[start : start + step]) for start in range(0, len(owner), step)
    ]
    return np.concatenate([np.zeros(0), *parts])
