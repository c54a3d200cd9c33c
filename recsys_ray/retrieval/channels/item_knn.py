"""Item-kNN: items that the same people met, in whatever order, as a cosine with shrinkage."""

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import scipy.sparse as sp
from pydantic import Field

from recsys_ray.retrieval.channels.counting import Block, co_occurrences, damped, item_weights, without_diagonal
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.item_table import ItemTableChannel, ItemTableConfig, load_item_table, table_of
from recsys_ray.retrieval.channels.settings import Search


class ItemKnnConfig(ItemTableConfig):
    """A cosine of the items' users, shrunk.

    Item i leads to item j with c_ij / (c_ii^source_exponent c_jj^target_exponent + shrink), where c_ij adds up
    1 / log2(2 + n_u)^user_exponent over the users u who met both; n_u is the number of items that u met. Deshpande and
    Karypis 2004, with the shrinkage of Bell and Koren 2007.

    Attributes:
        kind: Which channel this is.
        shrink: Added to the denominator: pairs that few users met count less.
        user_exponent: How much less users of long histories count.
        source_exponent: On the users of the item in the history.
        target_exponent: On the users of the item it leads to; both 0.5 is the cosine.
    """

    kind: Literal["item_knn"] = "item_knn"
    shrink: float = Field(20.0, ge=0)
    user_exponent: float = Field(1.0, ge=0)
    source_exponent: float = Field(0.5, ge=0, le=1)
    target_exponent: float = Field(0.5, ge=0, le=1)
    search: Search = Field(
        default_factory=lambda: {
            "decay": (0.5, 0.6, 0.7, 0.8, 0.9),
            "shrink": (0.0, 5.0, 20.0, 50.0),
            "target_exponent": (0.4, 0.5, 0.6, 0.7),
            "user_exponent": (0.0, 0.5, 1.0),
        }
    )


def fit(name: str, config: ItemKnnConfig, data: FitData) -> ItemTableChannel:
    """Count the users of each pair and normalise."""
    weigh = partial(damped, exponent=config.user_exponent)
    own = np.maximum(item_weights(data.events, weigh), 1e-12)
    sources, targets = own**config.source_exponent, own**config.target_exponent

    def similarities(block: Block) -> sp.csr_matrix:
        start, counts = without_diagonal(block)
        rows = np.repeat(sources[start : start + counts.shape[0]], np.diff(counts.indptr))
        values = counts.data / (rows * targets[counts.indices] + config.shrink)
        return sp.csr_matrix((values, counts.indices, counts.indptr), counts.shape)

    return ItemTableChannel(name, config, table_of(co_occurrences(data, weigh), similarities, config.neighbours))


def load(directory: Path) -> ItemTableChannel:
    """Read what `save` wrote."""
    return load_item_table(directory, ItemKnnConfig)
