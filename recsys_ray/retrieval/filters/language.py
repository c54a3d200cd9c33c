"""The filter language: what can be asked of catalogue fields.

In a field of lists one element that fits is enough. An item that lacks the field fits no condition on it, and so every
`Not` of one. Dates are ISO 8601 texts; a date without a time of day is the whole day.
"""

import json
from dataclasses import dataclass
from typing import Any

from recsys_ray.core.errors import ConfigError

Value = str | int | float | bool

MAX_DEPTH = 8
MAX_CONDITIONS = 128
MAX_VALUES = 10_000


@dataclass(frozen=True)
class Equals:
    """The field is the value, or a list that has it."""

    field: str
    value: Value


@dataclass(frozen=True)
class In:
    """The field is one of the values, or a list that has one of them."""

    field: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Range:
    """The field lies between the bounds, both included; texts in the order of their code points."""

    field: str
    min: Value | None = None
    max: Value | None = None


@dataclass(frozen=True)
class Not:
    """What the filter does not let through."""

    of: "Filter"


@dataclass(frozen=True)
class AllOf:
    """What all of the filters let through."""

    of: tuple["Filter", ...]


@dataclass(frozen=True)
class AnyOf:
    """What at least one of the filters lets through."""

    of: tuple["Filter", ...]


Filter = Equals | In | Range | Not | AllOf | AnyOf


def canonical(wanted: Filter) -> str:
    """A text that is the same for filters that differ only in the order or repetition of their parts.

    Raises:
        ConfigError: When the filter is too deep, has too many conditions, an empty list or no bound.
    """
    return json.dumps(_form(wanted, 1, [0]), ensure_ascii=False)


def _form(wanted: Filter, depth: int, count: list[int]) -> list[Any]:
    count[0] += 1
    if depth > MAX_DEPTH:
        raise ConfigError("filters", f"a depth of {depth} or more", f"at most {MAX_DEPTH} filters inside one another")
    if count[0] > MAX_CONDITIONS:
        raise ConfigError("filters", f"more than {MAX_CONDITIONS} conditions", f"at most {MAX_CONDITIONS} in all")
    if isinstance(wanted, Not):
        return ["not", _form(wanted.of, depth + 1, count)]
    if isinstance(wanted, AllOf | AnyOf):
        name = "all" if isinstance(wanted, AllOf) else "any"
        if not wanted.of:
            raise ConfigError("filters", f"{name} of nothing", "one filter at least")
        return [name, *_sorted([_form(part, depth + 1, count) for part in wanted.of])]
    return _condition(wanted)


def _condition(wanted: Equals | In | Range) -> list[Any]:
    setting = f"filters.{wanted.field}"
    if isinstance(wanted, Equals):
        return ["in", wanted.field, wanted.value]
    if isinstance(wanted, Range):
        if wanted.min is None and wanted.max is None:
            raise ConfigError(setting, "a range without bounds", "min, max or both")
        return ["range", wanted.field, wanted.min, wanted.max]
    if not wanted.values or len(wanted.values) > MAX_VALUES:
        raise ConfigError(setting, f"{len(wanted.values)} values", f"1 to {MAX_VALUES} values")
    return ["in", wanted.field, *_sorted(list(wanted.values))]


def _sorted(parts: list[Any]) -> list[Any]:
    """Each part once, in one order; by their text, since values of several kinds can't be compared, and True is 1."""
    return [part for _, part in sorted({json.dumps(part): part for part in parts}.items())]
