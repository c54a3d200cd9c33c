"""Ask every evaluation query again, offline, and note where its targets stand: full ranking, never sampled.

Single channels are ranked by `Channel.scores` over the whole catalogue, ties at their mean rank. The fused list is what
serving would answer: the retriever's own lists, joined by the same `combine`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.core.config import Config, execution
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.metrics import RankArray, list_ranks, mean_ranks
from recsys_ray.core.progress import track
from recsys_ray.data.dataset import Targets
from recsys_ray.retrieval.candidates import top_k
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.fusion import combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.retriever import Retriever

FUSED = "fused"
BUCKETS = ("head", "mid", "tail", "cold")
SHOWN = 10
# What ranking holds at once for each score: the score and its copy for the targets (float32), the negated copy
# (float32) and the order (int64) of the top k, two masks.
_BYTES_PER_SCORE = 4 + 4 + 4 + 8 + 2
_BYTES_PER_CANDIDATE = 100  # a dozen arrays of the fusion
_BYTES_PER_SOURCE = 12  # rank (int64) and score (float32) of a candidate in one channel


class EvaluationConfig(Config):
    """How the report is computed.

    Attributes:
        bootstrap_samples: Resamples of the users behind each confidence interval.
        max_users: Evaluate a random sample of this many queries per fold and part; None evaluates all.
        head_share: The most popular items that together hold this share of the training events are the head.
        tail_share: The least popular items that together hold this share are the tail; between them is mid.
        seed: Of the sample of users and of the bootstrap.
        block_bytes: Memory for the scores of one block of queries.
        shards: 1 ranks in this process; more ranks that many parts of the queries as Ray tasks.
    """

    bootstrap_samples: int = Field(1000, ge=100, le=100_000)
    max_users: int | None = Field(None, ge=1)
    head_share: float = Field(0.5, gt=0, lt=1)
    tail_share: float = Field(0.2, gt=0, lt=1)
    seed: int = Field(0, ge=0)
    block_bytes: int = execution(256 * 1024**2, ge=1)
    shards: int = execution(1, ge=1)

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.head_share + self.tail_share > 1:
            raise ValueError("head_share + tail_share of at most 1")
        return self


@dataclass(frozen=True)
class Replay:
    """Where T targets of Q queries stand in every ranking.

    Attributes:
        users: (Q,) user row of each query; the same user may come in several folds.
        new_users: (Q,) whether the user has no training event.
        queries: (T,) the query of each target.
        buckets: (T,) popularity bucket of each target, an index into `BUCKETS`.
        ranks: Ranking (channel name or "fused") to (T,) ranks from 0; infinity where the target was not retrieved.
        shown: Ranking to (Q, 10) the first items of each query, -1 where there are fewer.
        num_items: N.
    """

    users: IntArray
    new_users: BoolArray
    queries: IntArray
    buckets: IntArray
    ranks: dict[str, RankArray]
    shown: dict[str, IntArray]
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
            self.buckets[mask],
            {name: ranks[mask] for name, ranks in self.ranks.items()},
            {name: rows[kept] for name, rows in self.shown.items()},
            self.num_items,
        )


def replay(
    retriever: Retriever,
    targets: Targets,
    train_counts: IntArray,
    config: EvaluationConfig,
    user_tokens: IntArray | None = None,
) -> Replay:
    """Rank the whole catalogue for every query, by every channel and fused.

    Args:
        retriever: Fitted on the fold's training events.
        targets: The queries, and what they should find.
        train_counts: (N,) events of each item that the channels were fitted on.
        config: Block size and bucket limits; sample with `sample_targets` first.
        user_tokens: (U, T) attribute tokens of all users; None or T = 0 when users have no attributes.

    Raises:
        ConfigError: When a channel has the name that is kept for the fused ranking.
        DataError: When a channel gives scores of a wrong shape or NaN.
    """
    if FUSED in retriever.channels:
        raise ConfigError(f"channels.{FUSED}", FUSED, "any other name", "It is kept for the fused ranking.")
    num_items = len(train_counts)
    blocks = list(_blocks(len(targets), config.block_bytes // _query_bytes(retriever, num_items)))
    parts = [
        _replay_block(retriever, slice_targets(targets, start, stop), num_items, user_tokens)
        for start, stop in track(blocks, "Ranking the catalogue", total=len(blocks))
    ]
    names = [*retriever.channels, FUSED]
    return Replay(
        targets.users,
        targets.new_users,
        targets.items.row_of_value,
        popularity_buckets(train_counts, config)[targets.items.values],
        {name: np.concatenate([np.zeros(0), *(ranks[name] for ranks, _ in parts)]) for name in names},
        {name: np.concatenate([_NONE_SHOWN, *(shown[name] for _, shown in parts)]) for name in names},
        num_items,
    )


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
        np.concatenate([part.buckets for part in replays]),
        {name: np.concatenate([part.ranks[name] for part in replays]) for name in first.ranks},
        {name: np.concatenate([part.shown[name] for part in replays]) for name in first.ranks},
        first.num_items,
    )


def sample_targets(targets: Targets, config: EvaluationConfig) -> Targets:
    """At most `max_users` of the queries, drawn without repetition, in their order."""
    num_queries = len(targets)
    if config.max_users is None or num_queries <= config.max_users:
        return targets
    rng = np.random.default_rng(config.seed)
    return take_targets(targets, np.sort(rng.choice(num_queries, config.max_users, replace=False)))


def slice_targets(targets: Targets, start: int, stop: int) -> Targets:
    """The queries from `start` up to `stop`."""
    return take_targets(targets, np.arange(start, min(stop, len(targets)), dtype=np.int64))


def take_targets(targets: Targets, rows: IntArray) -> Targets:
    """Some of the queries, in the given order."""
    return Targets(
        targets.users[rows],
        targets.history.take(rows),
        targets.exclude.take(rows),
        targets.items.take(rows),
        targets.new_users[rows],
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


def _query_bytes(retriever: Retriever, num_items: int) -> int:
    """What ranking one query holds at once: its scores by one channel, or the lists of all channels while they fuse."""
    channels = len(retriever.channels)
    listed = channels * retriever.fusion.depth
    return max(num_items * _BYTES_PER_SCORE, listed * (_BYTES_PER_CANDIDATE + channels * _BYTES_PER_SOURCE), 1)


def _blocks(num_queries: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(size, 1)
    for start in range(0, num_queries, size):
        yield start, min(start + size, num_queries)


def _replay_block(retriever: Retriever, targets: Targets, num_items: int, user_tokens: IntArray | None) -> _Block:
    tokens = None if user_tokens is None or user_tokens.shape[1] == 0 else user_tokens[targets.users]
    questions = Queries(targets.history, targets.exclude, (None,) * len(targets), tokens)
    queries = retriever.encode(questions)
    ranks: dict[str, RankArray] = {}
    shown: dict[str, IntArray] = {}
    for name, channel in retriever.channels.items():
        scores = _checked_scores(name, channel, queries, num_items)
        ranks[name] = _score_ranks(scores, targets.items)
        shown[name] = top_k(scores, SHOWN).rows
    lists = retriever.retrieve(queries)
    # All candidates are kept, so that a tie across the cut still counts at its mean rank.
    depth = sum(candidates.rows.shape[1] for candidates in lists.values())
    fused = combine(lists, retriever.fusion, max(depth, SHOWN)).candidates
    ranks[FUSED] = _ranks(
        targets.items, len(queries), lambda owner, items: list_ranks(fused.rows[owner], fused.scores[owner], items)
    )
    shown[FUSED] = fused.rows[:, :SHOWN]
    return ranks, shown


def _checked_scores(name: str, channel: Channel, queries: Queries, num_items: int) -> FloatArray:
    scores = channel.scores(queries)
    expected = (len(queries), num_items)
    if scores.shape != expected:
        raise DataError(f"channel {name!r} gave scores of shape {scores.shape}; expected {expected} (queries, items)")
    if np.isnan(scores).any():
        raise DataError(f"channel {name!r} gave {int(np.isnan(scores).sum())} scores that are NaN; fit it again")
    return scores


def _score_ranks(scores: FloatArray, items: Ragged) -> RankArray:
    """(T,) mean ranks in the full ranking."""
    return _ranks(items, len(scores), lambda owner, targets: mean_ranks(scores[owner], targets))


def _ranks(items: Ragged, num_queries: int, rank: Callable[[IntArray, IntArray], RankArray]) -> RankArray:
    """(T,) ranks, over at most as many targets at a time as the block has queries: each copies its query's ranking."""
    owner, step = items.row_of_value, max(num_queries, 1)
    parts = [
        rank(owner[start : start + step], items.values[start : start + step]) for start in range(0, len(owner), step)
    ]
    return np.concatenate([np.zeros(0), *parts])
