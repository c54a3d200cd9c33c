"""Filters: conditions on catalogue fields, compiled to the mask of items that may come back.

A filter maps fields to conditions, all of which must hold::

    {"categories": "Action", "year": {"min": 1990, "max": 1999}, "director": {"in": ["Lana Wachowski", "John Woo"]}}

A plain value asks for equality, ``in`` for one of several, ``min`` and ``max`` for a range with both ends in it. In a
field of lists one element that fits is enough. An item that lacks the field never fits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.core.errors import ConfigError

_OPERATORS = ("in", "min", "max")


def allowed_items(items: pa.Table, filters: Mapping[str, Any]) -> BoolArray:
    """(N,) the items that fit all conditions.

    Args:
        items: The catalogue, one row an item. Fields that begin with an underscore cannot be asked for.
        filters: Field to condition.

    Raises:
        ConfigError: When a field is unknown or a condition does not fit its type.
    """
    allowed = np.ones(items.num_rows, np.bool_)
    for name, condition in filters.items():
        allowed &= _fits(_column(items, name), name, condition)
    return allowed


def _column(items: pa.Table, name: str) -> pa.ChunkedArray:
    fields = [field for field in items.column_names if not field.startswith("_")]
    if name not in fields:
        raise ConfigError(f"filters.{name}", name, ", ".join(fields), "The catalogue has no such field.")
    column = items.column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _fits(column: pa.ChunkedArray, name: str, condition: Any) -> BoolArray:
    if not pa.types.is_list(column.type) and not pa.types.is_large_list(column.type):
        return _holds(column, name, condition)
    fits = np.zeros(len(column), np.bool_)
    elements = _holds(pc.list_flatten(column), name, condition)
    owners: IntArray = pc.list_parent_indices(column).to_numpy().astype(np.int64)
    fits[owners[elements]] = True
    return fits


def _holds(column: pa.ChunkedArray, name: str, condition: Any) -> BoolArray:
    """(len,) whether each value fits; null does not."""
    if pa.types.is_nested(column.type):
        raise ConfigError(f"filters.{name}", condition, "conditions on fields of plain values, or of lists of them")
    checks = []
    for operator, value in _operators(name, condition).items():
        if operator == "in":
            checks.append(pc.is_in(column, value_set=_values(column.type, name, value)))
        else:
            bound = _values(column.type, name, [value])[0]
            compare = {"equals": pc.equal, "min": pc.greater_equal, "max": pc.less_equal}[operator]
            checks.append(compare(column, bound))
    holds = np.ones(len(column), np.bool_)
    for check in checks:
        holds &= np.asarray(pc.fill_null(check, False).to_numpy(zero_copy_only=False), np.bool_)
    return holds & ~np.asarray(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _operators(name: str, condition: Any) -> dict[str, Any]:
    if not isinstance(condition, Mapping):
        if isinstance(condition, list | tuple):
            raise ConfigError(f"filters.{name}", condition, 'a value, or {"in": [...]} for one of several')
        return {"equals": condition}
    unknown = set(condition) - set(_OPERATORS)
    if unknown or not condition:
        raise ConfigError(f"filters.{name}", dict(condition), f"a value, or a mapping with {', '.join(_OPERATORS)}")
    if "in" in condition and not isinstance(condition["in"], list | tuple | set):
        raise ConfigError(f"filters.{name}.in", condition["in"], "a list of values")
    return dict(condition)


def _values(kind: pa.DataType, name: str, values: Any) -> pa.Array:
    """The wanted values in the field's own type."""
    wanted = list(values)
    # Arrow would turn a number into a string or True into 1 in silence; a filter with the wrong type is a mistake.
    if any(not _is_of(kind, value) for value in wanted):
        raise ConfigError(f"filters.{name}", wanted[0] if len(wanted) == 1 else wanted, f"values of type {kind}")
    try:
        return pa.array(wanted, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        raise ConfigError(f"filters.{name}", wanted, f"values of type {kind}") from None


def _is_of(kind: pa.DataType, value: Any) -> bool:
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return isinstance(value, str)
    return value is not None
