"""Co-visitation: what people met soon after the items of the history. Directed and weighted by the gap between them."""

from pathlib import Path
from typing import Literal

import scipy.sparse as sp
from pydantic import Field

from recsys_ray.retrieval.channels.counting import Block, item_users, scaled, visited_pairs
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_table import ItemTableChannel, ItemTableConfig, load_item_table, table_of
from recsys_ray.retrieval.channels.settings import Search


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
    users = item_users(data.events)

    def normalised(block: Block) -> sp.csr_matrix:
        return scaled(block, users, config.source_exponent, config.target_exponent)

    blocks = visited_pairs(data, config.window, config.gap_exponent, config.transpose)
    return ItemTableChannel(name, config, table_of(blocks, normalised, config.neighbours))


def load(directory: Path) -> ItemTableChannel:
    """Read what `save` wrote."""
    return load_item_table(directory, CoVisitationConfig)
