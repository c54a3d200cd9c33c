"""Popularity: the same answer for everybody, and the only one for somebody who has no history."""

from pathlib import Path
from typing import Literal

import numpy as np

from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.unpersonalised import UnpersonalisedChannel, load_unpersonalised


class PopularityConfig(ChannelSettings):
    """Events of each item, over all time.

    Attributes:
        kind: Which channel this is.
    """

    kind: Literal["popularity"] = "popularity"


def fit(name: str, config: PopularityConfig, data: FitData) -> UnpersonalisedChannel:
    """Count the events of each item."""
    return UnpersonalisedChannel.of(name, config, data.events.item_counts().astype(np.float32))


def load(directory: Path) -> UnpersonalisedChannel:
    """Read what `save` wrote."""
    return load_unpersonalised(directory, PopularityConfig)
