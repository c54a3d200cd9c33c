"""What each catalogue field is used for: as the configuration says, else decided by type and by distinct values.

Auto, in this order; a field named in another role's setting is left out:
- lists of floats are vectors; lists of anything else are categorical;
- truth values, integers that are only 0 and 1 (flags), and integers of few values (codes) are categorical;
- other numbers, dates and times are numeric;
- strings of up to four words on average of which at most half are different are categorical; web addresses and
  one-word identifiers are ignored; other strings are text. The title is text always.
A field with a single value tells nothing and is ignored.
"""

from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core.derived import is_list
from recsys_ray.core.errors import ConfigError
from recsys_ray.data.sources import DataConfig, FieldNames

MAX_CODES = 30  # an integer field of at most this many values is a code, not a quantity
_MAX_DISTINCT_SHARE = 0.5
_MAX_WORDS = 4
_SAMPLE = 1000


@dataclass
class Roles:
    """Field names by use; `ignored` has the reason."""

    text: list[str] = field(default_factory=list)
    categorical: list[str] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)
    vectors: list[str] = field(default_factory=list)
    ignored: dict[str, str] = field(default_factory=dict)


def decide_roles(table: pa.Table, config: DataConfig, title: str | None, left_out: set[str]) -> Roles:
    """Roles of the fields of the catalogue.

    Args:
        table: The catalogue.
        config: The explicit settings.
        title: The field shown to people.
        left_out: Columns that are no fields (the id, the picture).

    Raises:
        ConfigError: When a setting names a field that is not there or of the wrong type.
    """
    explicit: dict[str, FieldNames] = {
        "text": config.text,
        "categorical": config.categorical,
        "numeric": config.numeric,
        "vectors": config.vectors,
    }
    roles = Roles()
    named: set[str] = set()
    for role, names in explicit.items():
        if names != "auto":
            _require(table, role, names)
            getattr(roles, role).extend(names)
            named.update(names)
    for name in table.column_names:
        if name in left_out or name in named:
            continue
        role = "text" if name == title else auto_role(table.column(name))
        if role in explicit and explicit[role] == "auto":
            getattr(roles, role).append(name)
        else:
            roles.ignored[name] = f"data.{role} does not name it" if role in explicit else role
    if title in roles.text and config.text == "auto":
        roles.text.sort(key=lambda name: name != title)
    return roles


def auto_role(column: pa.ChunkedArray) -> str:
    """text, categorical, numeric or vectors, else the reason why a field is not used."""
    kind = column.type
    if column.null_count == len(column):
        return "always missing"
    if is_list(kind) and pc.max(pc.list_value_length(column)).as_py() == 0:
        return "always empty"
    if is_list(kind):
        return "vectors" if pa.types.is_floating(kind.value_type) else _role_of_list(kind.value_type)
    if pa.types.is_boolean(kind):
        return "categorical"
    if pa.types.is_string(kind):
        return _role_of_text(column)
    if is_number(kind) or pa.types.is_temporal(kind):
        return _role_of_number(column)
    return f"no use for values of type {kind}"


def is_number(kind: pa.DataType) -> bool:
    """Whether a type is a number."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def are_web_addresses(column: pa.ChunkedArray) -> bool:
    """Whether most of a sample of texts are web addresses."""
    sample = column.drop_null().slice(0, _SAMPLE)
    if not len(sample) or not pa.types.is_string(sample.type):
        return False
    return bool(pc.mean(pc.cast(pc.match_substring_regex(sample, r"^https?://"), pa.float32())).as_py() > 0.5)


def is_flag(column: pa.ChunkedArray) -> bool:
    """Whether a field is true or false, or only 0 and 1: only what is true becomes a token."""
    if pa.types.is_boolean(column.type):
        return True
    return bool(pa.types.is_integer(column.type)) and set(_distinct(column, 3)) <= {0, 1}


def _role_of_list(inner: pa.DataType) -> str:
    usable = pa.types.is_string(inner) or pa.types.is_integer(inner) or pa.types.is_large_string(inner)
    return "categorical" if usable else f"no use for lists of {inner}"


def _role_of_number(column: pa.ChunkedArray) -> str:
    values = column.drop_null()
    distinct = pc.count_distinct(values).as_py()
    if distinct <= 1:
        return "a single value"
    if pa.types.is_integer(column.type) and distinct <= MAX_CODES and distinct <= _MAX_DISTINCT_SHARE * len(values):
        return "categorical"
    return "numeric"


def _role_of_text(column: pa.ChunkedArray) -> str:
    values = column.drop_null()
    distinct = pc.count_distinct(values).as_py()
    if distinct <= 1:
        return "a single value"
    sample = values.slice(0, _SAMPLE)
    if are_web_addresses(column):
        return "web addresses"
    words = pc.mean(pc.count_substring_regex(sample, r"\S+")).as_py()
    if distinct <= _MAX_DISTINCT_SHARE * len(values) and words <= _MAX_WORDS:
        return "categorical"
    return "text" if words > 1.05 else "one-word identifiers"


def _distinct(column: pa.ChunkedArray, at_most: int) -> list[object]:
    return list(pc.unique(column.drop_null()).slice(0, at_most).to_pylist())


def _require(table: pa.Table, role: str, names: tuple[str, ...]) -> None:
    for name in names:
        if name not in table.column_names:
            raise ConfigError(f"data.{role}", name, ", ".join(table.column_names), "There is no such column.")
        kind = table.schema.field(name).type
        if role == "numeric" and not (is_number(kind) or pa.types.is_temporal(kind) or pa.types.is_boolean(kind)):
            raise ConfigError("data.numeric", name, "fields that hold numbers", f"{name!r} holds {kind}.")
        if role == "vectors" and not (is_list(kind) and is_number(kind.value_type)):
            raise ConfigError("data.vectors", name, "columns of lists of numbers", f"{name!r} holds {kind}.")
