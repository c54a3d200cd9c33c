"""One catalogue field, laid out so that the items of a value or of a range are one slice."""

import datetime as dt
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.core.errors import ConfigError

_DAY_US = 86_400 * 1_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
# From this share of the items on, one comparison of all codes takes less time than writing the places of a slice.
_WIDE = 1 / 32


@dataclass(frozen=True)
class FieldIndex:
    """The V different values of a field and who has them.

    Attributes:
        name: The field.
        kind: Type of its values; for lists, of their elements.
        values: (V,) rising: a numpy array of numbers (dates in microseconds since 1970), or an Arrow array of texts.
        starts: (V + 1,) the items with value v are ``rows[starts[v]:starts[v + 1]]``, rising.
        rows: (E,) int32.
        codes: (N,) place of each item's value, -1 where it has none; None for a field of lists.
        num_items: N.
    """

    name: str
    kind: pa.DataType
    values: npt.NDArray[Any] | pa.Array
    starts: IntArray
    rows: npt.NDArray[np.int32]
    codes: npt.NDArray[np.signedinteger[Any]] | None
    num_items: int

    @classmethod
    def of(cls, name: str, column: pa.ChunkedArray) -> "FieldIndex":
        """From a column of the catalogue.

        Raises:
            ConfigError: When the type of the field cannot be filtered by.
        """
        elements, owners = _elements(column)
        kind = elements.type
        valid = np.flatnonzero(elements.is_valid().to_numpy(zero_copy_only=False))
        values, codes = _coded(name, elements.take(pa.array(valid)))
        known = codes >= 0
        codes, owned = codes[known], owners[valid][known]
        order = np.lexsort((owned, codes))
        starts = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(codes, minlength=len(values)))])
        of_items = None
        if not _is_list(column.type):
            of_items = np.full(len(column), -1, np.min_scalar_type(-max(len(values), 1)))
            of_items[owned] = codes
        return cls(name, kind, values, starts, owned[order].astype(np.int32), of_items, len(column))

    def among(self, wanted: tuple[Any, ...]) -> BoolArray:
        """(N,) the items that have one of the values.

        Raises:
            ConfigError: When a value is not of the field's type.
        """
        spans = np.array([self._span(value, value) for value in wanted], np.int64)
        if len(spans) == 1:
            return self._between(int(spans[0, 0]), int(spans[0, 1]))
        first, last = self.starts[spans[:, 0]], self.starts[spans[:, 1]]
        lengths = last - first
        places = np.arange(int(lengths.sum())) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
        return self._mask(places)

    def between(self, least: Any | None, most: Any | None) -> BoolArray:
        """(N,) the items with a value from `least` to `most`; None is no bound.

        Raises:
            ConfigError: When a bound is not of the field's type, or they are the wrong way round.
        """
        if pa.types.is_boolean(self.kind):
            raise ConfigError(f"filters.{self.name}", "a range", "true or false: the field has no order")
        if least is not None and most is not None and self._bounds(least)[0] > self._bounds(most)[1]:
            raise ConfigError(f"filters.{self.name}", f"min {least!r} above max {most!r}", "a min up to the max")
        return self._between(*self._span(least, most))

    def _span(self, least: Any | None, most: Any | None) -> tuple[int, int]:
        """The places of the values from `least` to `most`."""
        first = 0 if least is None else self._place(self._bounds(least)[0], "left")
        last = len(self.values) if most is None else self._place(self._bounds(most)[1], "right")
        return first, max(first, last)

    def _place(self, value: Any, side: str) -> int:
        if isinstance(self.values, np.ndarray):
            return int(np.searchsorted(self.values, value, "left" if side == "left" else "right"))
        values = self.values
        found = bisect_left(range(len(values)), value, key=lambda place: values[place].as_py())
        same = side == "right" and found < len(values) and values[found].as_py() == value
        return found + same

    def _between(self, first: int, last: int) -> BoolArray:
        places = slice(int(self.starts[first]), int(self.starts[last]))
        if self.codes is None or places.stop - places.start < _WIDE * self.num_items:
            return self._mask(places)
        if last - first == 1:
            return np.asarray(self.codes == first)
        return (self.codes >= first) & (self.codes < last)

    def _mask(self, places: slice | IntArray) -> BoolArray:
        mask = np.zeros(self.num_items, np.bool_)
        mask[self.rows[places]] = True
        return mask

    def _bounds(self, value: Any) -> tuple[Any, Any]:
        """First and last value of the field's own type that a value stands for: they differ for days alone."""
        kind = self.kind
        if pa.types.is_temporal(kind):
            return self._moments(value)
        if not _is_of(kind, value):
            raise self._wrong(value)
        if pa.types.is_integer(kind):
            if not -(2**63) <= value < 2**63:
                raise self._wrong(value)
            return value, value
        if pa.types.is_float32(kind):
            value = float(np.float32(min(max(value, -3e38), 3e38)))
        return value, value

    def _moments(self, value: Any) -> tuple[int, int]:
        try:
            if not isinstance(value, str):
                raise self._wrong(value)
            moment = dt.datetime.fromisoformat(value)
            is_day = len(value) <= 10
            aware = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
            first = (aware - _EPOCH) // dt.timedelta(microseconds=1)
        except (ValueError, OverflowError):
            raise self._wrong(value) from None
        return first, first + _DAY_US - 1 if is_day else first

    def _wrong(self, value: Any) -> ConfigError:
        shown = value if isinstance(value, bool | int | float) else str(value)[:80]
        kinds = "dates or times in ISO 8601" if pa.types.is_temporal(self.kind) else f"values of type {self.kind}"
        return ConfigError(f"filters.{self.name}", shown, kinds)


def _elements(column: pa.ChunkedArray) -> tuple[pa.Array, IntArray]:
    """The values and the item of each; of lists all elements."""
    if not _is_list(column.type):
        whole = column.combine_chunks()
        flat, owners = whole, np.arange(len(column))
    else:
        flat = pc.list_flatten(column).combine_chunks()
        owners = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    flat = pa.concat_arrays(flat.chunks) if isinstance(flat, pa.ChunkedArray) else flat
    return (flat.cast(flat.type.value_type) if pa.types.is_dictionary(flat.type) else flat), owners


def _coded(name: str, values: pa.Array) -> tuple[npt.NDArray[Any] | pa.Array, IntArray]:
    """The different values, rising, and the place of each among them; -1 for what is no number."""
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary).to_numpy()
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        return encoded.dictionary.take(pa.array(order)), rank[encoded.indices.to_numpy()]
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        numbers = values.cast(pa.timestamp("us", getattr(kind, "tz", None)), safe=False).cast(pa.int64()).to_numpy()
    elif pa.types.is_boolean(kind) or (pa.types.is_integer(kind) and not pa.types.is_uint64(kind)):
        numbers = values.cast(pa.int64()).to_numpy()
    elif pa.types.is_floating(kind):
        numbers = values.cast(pa.float64()).to_numpy()
    else:
        allowed = "fields of text, numbers, booleans or dates, or of lists of them"
        raise ConfigError(f"filters.{name}", f"a field of type {kind}", allowed)
    distinct, codes = np.unique(numbers, return_inverse=True, equal_nan=True)
    is_number = ~np.isnan(distinct)
    return distinct[is_number], np.where(is_number[codes], codes, -1)  # NaN is the last one


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _is_of(kind: pa.DataType, value: Any) -> bool:
    """Whether a value is of the field's type: Python alone would take True for 1."""
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e308
    return isinstance(value, str)
