"""Co-visitation: what people met soon after the items of the history. Directed and weighted by the gap between them."""

from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_table import ItemTableChannel, ItemTableConfig, load_item_table
from recsys_ray.retrieval.channels.settings import Search
from recsys_ray.retrieval.channels.table import Table, prune


class CoVisitationConfig(ItemTableConfig):
    """Directed co-occurrence counts as an item-to-item table.

    Attributes:
        kind: Which channel this is.
        window: Pairs of events of one user that lie at most this many steps apart are counted.
        gap_exponent: A pair that lies g steps apart counts 1 / g to this power.
        transpose: Share of the opposite direction that is added: 0 keeps order strict, 1 forgets it.
        source_exponent: The count is divided by the users of the item in the history to this power.
        target_exponent: And by the users of the item it leads to, to this power; both 0.5 is the cosine.
    """

    kind: Literal["co_visitation"] = "co_visitation"
    window: int = Field(10, ge=1, le=1000)
    gap_exponent: float = Field(1.0, ge=0)
    transpose: float = Field(0.3, ge=0, le=1)
    source_exponent: float = Field(0.5, ge=0, le=1)
    target_exponent: float = Field(0.5, ge=0, le=1)
    search: Search = Field(
        default_factory=lambda: {
            "decay": (0.5, 0.6, 0.7, 0.8, 0.9),
            "target_exponent": (0.2, 0.35, 0.5),
            "source_exponent": (0.2, 0.35, 0.5),
            "gap_exponent": (0.5, 1.0),
            "window": (10, 20),
            "transpose": (0.1, 0.3, 0.6),
        }
    )


def fit(name: str, config: CoVisitationConfig, data: FitData) -> ItemTableChannel:
    """Count the pairs and normalise them."""
    counts = count_pairs(data.events, config.window, config.gap_exponent)
    table = counts + config.transpose * counts.T if config.transpose else counts
    users = np.maximum(np.asarray(data.events.matrix().sum(0)).ravel(), 1.0)
    table = sp.diags(users**-config.source_exponent) @ table @ sp.diags(users**-config.target_exponent)
    if config.neighbours is not None:
        table = prune(table, config.neighbours)
    return ItemTableChannel(name, config, Table.of(table))


def load(directory: Path) -> ItemTableChannel:
    """Read what `save` wrote."""
    return load_item_table(directory, CoVisitationConfig)


def count_pairs(events: Events, window: int, gap_exponent: float) -> sp.csr_matrix:
    """(N, N) float32: entry (i, j) sums 1 / gap^exponent over all times a user met j within `window` steps after i."""
    users, items = events.users, events.items
    counts = sp.csr_matrix((events.num_items, events.num_items), dtype=np.float32)
    # One gap at a time: memory holds the distinct pairs, never all pairs of the window.
    for gap in range(1, min(window, max(len(items) - 1, 0)) + 1):
        same = users[gap:] == users[:-gap]
        if not same.any():
            break
        weights = np.full(int(same.sum()), gap**-gap_exponent, np.float32)
        pairs = (items[:-gap][same].astype(np.int32), items[gap:][same].astype(np.int32))
        counts = counts + sp.csr_matrix((weights, pairs), counts.shape)
    return counts
