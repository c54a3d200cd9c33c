"""RP3beta: a walk of three steps on the graph of users and items, the popularity of where it ends damped.

Paudel, Christoffel, Newell and Bernstein 2017: from the item to one of its users, to one of that user's items.
"""

from functools import partial
from pathlib import Path
from typing import Literal

import scipy.sparse as sp
from pydantic import Field

from recsys_ray.retrieval.channels.counting import (
    Block,
    co_occurrences,
    item_users,
    scaled,
    shrinking,
    without_diagonal,
)
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_table import ItemTableChannel, ItemTableConfig, load_item_table, table_of
from recsys_ray.retrieval.channels.settings import Search


class Rp3BetaConfig(ItemTableConfig):
    """A walk from item to item by way of a user.

    Item i leads to item j with the sum of 1 / (m_i n_u)^alpha over the users u who met both, divided by m_j^beta; m
    counts the users of an item, n the items of a user.

    Attributes:
        kind: Which channel this is.
        alpha: What the chances of each step are raised to; 1 is a random walk.
        beta: How much less items of many users are worth.
    """

    kind: Literal["rp3beta"] = "rp3beta"
    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.3, ge=0)
    search: Search = Field(
        default_factory=lambda: {
            "beta": (0.1, 0.2, 0.3, 0.45, 0.6, 0.75),
            "decay": (0.5, 0.6, 0.7, 0.8, 0.9),
            "alpha": (0.2, 0.5, 0.8),
        }
    )


def fit(name: str, config: Rp3BetaConfig, data: FitData) -> ItemTableChannel:
    """Walk from every item."""
    users = item_users(data.events)

    def walked(block: Block) -> sp.csr_matrix:
        return scaled(without_diagonal(block), users, config.alpha, config.beta)

    blocks = co_occurrences(data, partial(shrinking, exponent=config.alpha))
    return ItemTableChannel(name, config, table_of(blocks, walked, config.neighbours))


def load(directory: Path) -> ItemTableChannel:
    """Read what `save` wrote."""
    return load_item_table(directory, Rp3BetaConfig)
