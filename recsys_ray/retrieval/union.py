"""All channels' lists of a batch end to end, and the distinct candidates in them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.index.topk import NO_KEY, falling_keys, low_half
from recsys_ray.retrieval.candidates import Candidates

Numbers = npt.NDArray[np.float64]
_LARGEST = 0xFFFF_FFFF


@dataclass(frozen=True)
class Union:
    """All lists of B queries end to end, and the distinct candidates in them.

    Attributes:
        query: (U,) query of each distinct candidate, rising.
        row: (U,) its item row, rising within a query.
        member: (E,) the distinct candidate behind each list entry.
        column: (E,) the place of each list entry in its query's lists, end to end.
        channel: (E,) the channel of each entry.
        rank: (E,) its rank from 0 in its list.
        score: (E,) its own score.
    """

    query: IntArray
    row: IntArray
    member: IntArray
    column: IntArray
    channel: IntArray
    rank: IntArray
    score: FloatArray


def unite(lists: dict[str, Candidates]) -> Union:
    """Put all lists end to end and find the distinct candidates of each query."""
    width = sum(candidates.rows.shape[1] for candidates in lists.values())
    rows = np.concatenate([candidates.rows for candidates in lists.values()], axis=1)
    scores = np.concatenate([candidates.scores for candidates in lists.values()], axis=1)
    depths = [candidates.rows.shape[1] for candidates in lists.values()]
    channel = np.repeat(np.arange(len(depths)), depths)
    rank = np.concatenate([np.arange(depth) for depth in depths])
    flat = np.flatnonzero(rows.ravel() >= 0)
    query, column = np.divmod(flat, max(width, 1))
    row = rows.ravel()[flat]
    span = int(row.max(initial=0)) + 1
    distinct, member = np.unique(query * span + row, return_inverse=True)
    owner, found = np.divmod(distinct, span)
    return Union(owner, found, member, column, channel[column], rank[column], scores.ravel()[flat])


def mean_ranks(scores: FloatArray) -> Numbers:
    """(B, K) rank from 0 of each place in falling scores; equal ones share their mean, so that row order says nothing.

    Args:
        scores: (B, K), falling in each row.
    """
    num_queries, depth = scores.shape
    first = np.ones(scores.shape, np.bool_)
    first[:, 1:] = scores[:, 1:] != scores[:, :-1]
    if first.all():  # no two are equal, as in most lists of real scores
        return np.tile(np.arange(depth, dtype=np.float64), (num_queries, 1))
    group = np.cumsum(first.ravel()) - 1
    starts = np.flatnonzero(first.ravel()) % depth
    means = starts + (np.bincount(group, minlength=len(starts)) - 1) / 2
    return np.asarray(means[group].reshape(num_queries, depth), np.float64)


def scaled_scores(lists: Mapping[str, Candidates], union: Union, temperatures: Mapping[str, float]) -> Numbers:
    """(E,) scores of the list entries on a common scale of at most 1: divided by the best of their list.

    Those of channels with a temperature T are exp((score - best) / T) instead.
    """
    entry_query = union.query[union.member]
    result = np.empty(len(union.score))
    for place, (name, candidates) in enumerate(lists.items()):
        mine = np.flatnonzero(union.channel == place)
        best = candidates.scores[entry_query[mine], 0].astype(np.float64)
        result[mine] = _scaled(union.score[mine], best, temperatures.get(name))
    return result


def _scaled(scores: FloatArray, best: Numbers, temperature: float | None) -> Numbers:
    if temperature is not None:
        return np.asarray(np.exp((scores - best) / temperature), np.float64)
    # A list whose best score is not positive has no scale of its own: all of it counts nothing, and fills up.
    return np.where(best > 0, np.maximum(scores, 0) / np.where(best > 0, best, 1.0), 0.0)


def best_first(union: Union, scores: FloatArray, k: int) -> tuple[IntArray, IntArray]:
    """The k best distinct candidates of each query, and the place of each in its list."""
    best_rank = np.full(len(union.row), np.iinfo(np.int64).max)
    np.minimum.at(best_rank, union.member, union.rank)
    counts = np.bincount(union.query)
    starts, width = np.cumsum(counts) - counts, int(counts.max(initial=1))
    inside = np.arange(len(union.row)) - starts[union.query]
    # One sort by score, then best rank, then row; among equal scores, ranks past 2^32 / width would count as one.
    then = np.minimum(best_rank, _LARGEST // width - 1) * width + inside
    keys = np.full((len(counts), width), NO_KEY)
    keys[union.query, inside] = falling_keys(scores, then)
    keys.sort(axis=1)
    query, place = np.nonzero(keys[:, :k] < NO_KEY)
    return starts[query] + low_half(keys[query, place]) % width, place
