"""Trending: what was popular of late. Where tastes move, a serious peer of anything personal."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings, Search
from recsys_ray.retrieval.channels.unpersonalised import (
    UnpersonalisedChannel,
    load_unpersonalised,
    require_real_time,
)


class TrendingConfig(ChannelSettings):
    """Events of each item in the last stretch of time.

    Attributes:
        kind: Which channel this is.
        window: The newest events, this share of all, are counted: a measure that fits a busy shop and a slow one alike.
        half_lives: An event at the window's start counts 1/2 to this power of one at its end; 0 counts all alike.
    """

    kind: Literal["trending"] = "trending"
    window: float = Field(0.05, gt=0, le=1)
    half_lives: float = Field(0.0, ge=0, le=100)
    search: Search = Field(
        default_factory=lambda: {"window": (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5), "half_lives": (0.0, 1.0, 3.0)}
    )


def fit(name: str, config: TrendingConfig, data: FitData) -> UnpersonalisedChannel:
    """Count the newest events of each item.

    Raises:
        NotApplicable: When the events do not say when they happened.
    """
    require_real_time(name, data.events)
    return UnpersonalisedChannel.of(name, config, count_newest(data.events, config.window, config.half_lives))


def load(directory: Path) -> UnpersonalisedChannel:
    """Read what `save` wrote."""
    return load_unpersonalised(directory, TrendingConfig)


def count_newest(events: Events, window: float, half_lives: float) -> FloatArray:
    """(N,) weighted counts over the newest share of the events; those of one moment are never torn apart."""
    times = events.timestamps
    place = min(int(len(times) * (1 - window)), len(times) - 1)
    start, end = int(np.partition(times, place)[place]), int(times.max())
    newest = times >= start
    age = (end - times[newest]) / max(end - start, 1)  # 0 at the window's end, 1 at its start
    counts = np.bincount(events.items[newest], 0.5 ** (half_lives * age), minlength=events.num_items)
    return counts.astype(np.float32)
