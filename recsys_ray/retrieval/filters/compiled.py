"""Filters of one catalogue, compiled to sets of items; a filter that was compiled lately is not compiled again."""

from collections import OrderedDict
from collections.abc import Iterable
from threading import Lock

import numpy as np
import pyarrow as pa

from recsys_ray.core.arrays import BoolArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.subset import Subset
from recsys_ray.retrieval.filters.fields import FieldIndex
from recsys_ray.retrieval.filters.language import AllOf, AnyOf, Equals, Filter, In, Not, canonical

CACHE_BYTES = 64 << 20


class CompiledFilters:
    """What filters let through of one catalogue. May be asked from several threads.

    Args:
        items: The catalogue, one row an item. Fields that begin with an underscore cannot be asked for.
        cache_bytes: Memory for compiled sets; the ones unused for longest go first.
    """

    def __init__(self, items: pa.Table, cache_bytes: int = CACHE_BYTES) -> None:
        self._items = items
        self._fields: dict[str, FieldIndex] = {}
        self._cache_bytes = cache_bytes
        self._known: OrderedDict[str, Subset] = OrderedDict()
        self._lock = Lock()

    def prepare(self, names: Iterable[str]) -> None:
        """Lay out some fields now, that no question has to wait for it; fields that can't be filtered are left out."""
        for name in names:
            try:
                self._field(name)
            except ConfigError:
                continue

    def compile(self, wanted: Filter) -> Subset:
        """The items that fit.

        Raises:
            ConfigError: When a field is unknown or a condition does not fit its type.
        """
        key = canonical(wanted)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key]
        subset = Subset(self._mask(wanted))
        with self._lock:
            self._known[key] = subset
            total = sum(one.num_bytes for one in self._known.values())
            while total > self._cache_bytes and len(self._known) > 1:
                total -= self._known.popitem(last=False)[1].num_bytes
        return subset

    def _mask(self, wanted: Filter) -> BoolArray:
        if isinstance(wanted, Not):
            return ~self._mask(wanted.of)
        if isinstance(wanted, AllOf | AnyOf):
            join = np.logical_and if isinstance(wanted, AllOf) else np.logical_or
            mask = self._mask(wanted.of[0])
            for part in wanted.of[1:]:
                mask = join(mask, self._mask(part))
            return mask
        field = self._field(wanted.field)
        if isinstance(wanted, Equals):
            return field.among((wanted.value,))
        if isinstance(wanted, In):
            return field.among(wanted.values)
        return field.between(wanted.min, wanted.max)

    def _field(self, name: str) -> FieldIndex:
        if name not in self._fields:
            allowed = [field for field in self._items.column_names if not field.startswith("_")]
            if name not in allowed:
                raise ConfigError(f"filters.{name}", name, ", ".join(allowed), "The catalogue has no such field.")
            self._fields[name] = FieldIndex.of(name, self._items.column(name))
        return self._fields[name]


def allowed_items(items: pa.Table, wanted: Filter) -> BoolArray:
    """(N,) the items of a small table that fit, see `CompiledFilters.compile`."""
    return CompiledFilters(items).compile(wanted).mask
