"""What an index found of one question, against the exact answer under the same filter and exclusions."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.index.live import LiveIndex
from recsys_ray.retrieval.candidates import top_k
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release

NO_FILTER, WIDE, NARROW, NARROWEST = "no_filter", "over_10_percent", "1_to_10_percent", "under_1_percent"
HEAD, TAIL = "head", "tail"
_HEAD_SHARE = 0.5
_TIE = 1e-5  # as where the index was chosen: a result as good as the true k-th is a right one


@dataclass(frozen=True)
class Found:
    """One channel, one question.

    Attributes:
        selectivity: By the share of the items that the question's filter allows.
        recall: recall@k; k is what the index was chosen by.
        of_items: The same of the exact answer's popular items ("head") and of the others ("tail"), where it has any.
    """

    selectivity: str
    recall: float
    of_items: Mapping[str, float]


def measure(channel: NearestChannel, queries: Queries, is_head: BoolArray) -> Found | None:
    """Ask an index once as it is and once exactly; None where there is nothing to be found.

    Args:
        channel: The channel.
        queries: One encoded question.
        is_head: (N,) see `head_of`; rows beyond it are new items, which nobody has met.
    """
    k = int(channel.facts["index"]["k"])
    exact = top_k(channel.scores(queries), k)
    wanted = exact.rows[0][exact.rows[0] >= 0]
    if not len(wanted):
        return None
    found = channel.retrieve(queries, k)
    good = int(((found.rows[0] >= 0) & (found.scores[0] >= exact.scores[0, len(wanted) - 1] - _TIE)).sum())
    recall = min(good / len(wanted), 1.0)
    hit = np.isin(wanted, found.rows[0]) | (recall == 1)  # of twins either will do
    head = _within(is_head, wanted)
    parts = {HEAD: hit[head], TAIL: hit[~head]}
    of_items = {name: float(part.mean()) for name, part in parts.items() if len(part)}
    return Found(_selectivity(queries), recall, of_items)


def head_of(release: Release) -> BoolArray:
    """(N,) the most popular items, that together hold half of the events in the release's histories."""
    counts = np.bincount(release.histories.events.rows, minlength=len(release.item_ids))
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    head = np.zeros(len(counts), np.bool_)
    head[order] = (before < _HEAD_SHARE * counts.sum()) & (counts[order] > 0)
    return head


def changed_share(channel: NearestChannel) -> float:
    """The part of the items whose vectors came, changed or went since the channel's index was built: its age."""
    index = channel.index
    if not isinstance(index, LiveIndex):
        return 0.0
    base = index.present.num_rows
    gone_or_changed = base - index.present.subset.size
    return (gone_or_changed + int((index.rows >= base).sum())) / max(index.num_rows, 1)


def _selectivity(queries: Queries) -> str:
    subset = None if queries.allowed is None else queries.allowed.of(0)
    if subset is None:
        return NO_FILTER
    return WIDE if subset.share > 0.1 else NARROW if subset.share >= 0.01 else NARROWEST


def _within(mask: BoolArray, rows: IntArray) -> BoolArray:
    inside = rows < len(mask)
    return inside & mask[np.where(inside, rows, 0)]
