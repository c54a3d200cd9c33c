"""The exploration quota: places of a merged list that are kept for items hardly anybody has met yet.

Counts of events can't find a new item, and without being shown it gathers none. So the last places of a list go to the
new items that the channels themselves put highest: relevance chooses which, the quota only how many.
"""

import base64
import zlib
from functools import lru_cache

import numpy as np
from pydantic import Field

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.core.config import Config


class ExplorationConfig(Config):
    """Which items are new, and how many places they get.

    Attributes:
        share: Of the k places, rounded down; 0 keeps none. Where new items hold as many by themselves nothing changes.
        most_events: An item with at most so many events is new.
    """

    share: float = Field(0.0, ge=0, lt=1)
    most_events: int = Field(5, ge=0)


class Exploration(Config):
    """A finished quota; all of it is text, so that it lies in `fusion.json`.

    Attributes:
        share: See `ExplorationConfig`.
        new_items: One bit an item, compressed, base64.
    """

    share: float = Field(gt=0, lt=1)
    new_items: str

    @classmethod
    def of(cls, config: ExplorationConfig, item_counts: IntArray) -> "Exploration | None":
        """For a catalogue with (N,) events an item; None where no place is kept."""
        if not config.share:
            return None
        new = np.ones(-(-len(item_counts) // 8) * 8, bool)  # rows that do not exist yet will be new
        new[: len(item_counts)] = item_counts <= config.most_events
        packed = zlib.compress(np.packbits(new).tobytes())
        return cls(share=config.share, new_items=base64.b64encode(packed).decode())

    def is_new(self, rows: IntArray) -> BoolArray:
        """(n,) which items are new; those that came after the quota was made are."""
        known = _bits(self.new_items)
        new = np.ones(len(rows), bool)
        inside = rows < len(known)
        new[inside] = known[rows[inside]]
        return new


def with_quota(query: IntArray, new: BoolArray, k: int, share: float) -> tuple[IntArray, IntArray]:
    """The k places of each query's list with the quota kept.

    New items beyond the first k move up, best first, in place of the last others among the first k, until new items
    hold the quota or there are no more.

    Args:
        query: (n,) the query of each candidate, rising; within a query best first.
        new: (n,) whether it is new.
        k: Places.
        share: Of the places, see `ExplorationConfig`.

    Returns:
        Which candidates stay, and the place of each, in the order of queries and places.
    """
    count = int(query.max(initial=-1)) + 1
    starts = np.searchsorted(query, np.arange(count))
    place = np.arange(len(query)) - starts[query]
    first = place < k
    held = np.bincount(query[first & new], minlength=count)
    beyond = np.bincount(query[~first & new], minlength=count)
    moved = np.minimum(np.maximum(int(share * k) - held, 0), beyond)
    kept = (first & ~_last(query, first & ~new, moved)) | _foremost(query, ~first & new, moved)
    chosen = np.flatnonzero(kept)
    of_chosen = query[chosen]
    return chosen, np.arange(len(chosen)) - np.searchsorted(of_chosen, np.arange(count))[of_chosen]


def _foremost(query: IntArray, mask: BoolArray, wanted: IntArray) -> BoolArray:
    """(n,) the first `wanted` of each query under the mask."""
    result = np.zeros(len(query), bool)
    places = np.flatnonzero(mask)
    owner = query[places]
    inside = np.arange(len(places)) - np.searchsorted(owner, np.arange(len(wanted)))[owner]
    result[places[inside < wanted[owner]]] = True
    return result


def _last(query: IntArray, mask: BoolArray, wanted: IntArray) -> BoolArray:
    """(n,) the last `wanted` of each query under the mask."""
    sizes = np.bincount(query[mask], minlength=len(wanted))
    return mask & ~_foremost(query, mask, np.maximum(sizes - wanted, 0))


@lru_cache(maxsize=8)
def _bits(text: str) -> BoolArray:
    return np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)).astype(bool)
