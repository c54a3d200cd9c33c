"""Recent: the newest items of the catalogue, which counts of events have had no time to find."""

from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.unpersonalised import (
    UnpersonalisedChannel,
    load_unpersonalised,
    require_real_time,
)

_DAY_US = 86_400 * 1_000_000
_UNKNOWN = np.iinfo(np.int64).min


class RecentConfig(ChannelSettings):
    """Items, newest first.

    Attributes:
        kind: Which channel this is.
        field: A catalogue field of dates or ISO texts that says when an item appeared; null takes the time of its
            first event, and leaves out items without any.
    """

    kind: Literal["recent"] = "recent"
    field: str | None = None


def fit(name: str, config: RecentConfig, data: FitData) -> UnpersonalisedChannel:
    """Order the items by when they appeared.

    Raises:
        NotApplicable: When there is no date field and the events do not say when they happened.
        ConfigError: When the field is not in the catalogue or holds no dates.
    """
    if config.field is None:
        require_real_time(name, data.events)
        return UnpersonalisedChannel.of(name, config, recency(first_times(data.events)))
    return UnpersonalisedChannel.of(name, config, recency(_dates(name, config.field, data.items)))


def load(directory: Path) -> UnpersonalisedChannel:
    """Read what `save` wrote."""
    return load_unpersonalised(directory, RecentConfig)


def first_times(events: Events) -> IntArray:
    """(N,) microseconds since 1970 of each item's first event; the least int64 where it has none."""
    first = np.full(events.num_items, np.iinfo(np.int64).max)
    np.minimum.at(first, events.items, events.timestamps)
    first[events.item_counts() == 0] = _UNKNOWN
    return first


def recency(appeared: IntArray) -> FloatArray:
    """(N,) 1 / (1 + days by which an item is older than the newest); 0 where that is unknown."""
    known = appeared != _UNKNOWN
    days = (appeared.max(initial=_UNKNOWN) - np.where(known, appeared, 0)) / _DAY_US
    return np.where(known, 1.0 / (1.0 + days), 0.0).astype(np.float32)


def _dates(name: str, field: str, items: pa.Table) -> IntArray:
    """(N,) microseconds since 1970; the least int64 where an item has no date."""
    setting = f"channels.{name}.field"
    if field not in items.column_names:
        raise ConfigError(setting, field, ", ".join(column for column in items.column_names if column[0] != "_"))
    column = items.column(field)
    if not (pa.types.is_temporal(column.type) or pa.types.is_string(column.type)):
        raise ConfigError(setting, field, f"a field of dates or ISO texts, not {column.type}")
    try:
        times = column.cast(pa.timestamp("us"))
    except pa.ArrowInvalid as error:
        raise ConfigError(setting, field, "a field of dates or ISO texts", str(error)) from None
    appeared: IntArray = times.cast(pa.int64()).fill_null(_UNKNOWN).to_numpy()
    return appeared
