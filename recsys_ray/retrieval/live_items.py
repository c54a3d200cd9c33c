"""One item as a client sends it: checked as prepare checks a catalogue, encoded, and written to the item log."""

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa

from recsys_ray.core import schema, validate
from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.derived import is_list
from recsys_ray.core.errors import ConfigError, StoreError
from recsys_ray.core.schema import Fields
from recsys_ray.core.validate import PictureLimits


@dataclass(frozen=True)
class ItemBody:
    """What the item log holds of an item.

    Attributes:
        fields: As they were sent, so that another release can read and encode them anew.
        picture: The bytes of a JPEG, PNG, …; None without.
        spaces: The spaces that the item was encoded for; vectors of others are never read.
        vectors: Space id to (D,) its vector, where it has anything that the space reads.
    """

    fields: Mapping[str, Any]
    picture: bytes | None
    spaces: tuple[str, ...]
    vectors: Mapping[str, FloatArray]

    def to_bytes(self) -> bytes:
        """As JSON."""
        document = {
            "fields": self.fields,
            "picture": None if self.picture is None else base64.b64encode(self.picture).decode(),
            "spaces": self.spaces,
            "vectors": {space: base64.b64encode(_bytes(vector)).decode() for space, vector in self.vectors.items()},
        }
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    @classmethod
    def from_bytes(cls, raw: bytes) -> Self:
        """What `to_bytes` wrote.

        Raises:
            StoreError: When it is something else.
        """
        try:
            document = json.loads(raw)
            picture = document["picture"]
            vectors = {
                space: np.frombuffer(base64.b64decode(text), "<f4") for space, text in document["vectors"].items()
            }
            decoded = None if picture is None else base64.b64decode(picture)
            return cls(document["fields"], decoded, tuple(document["spaces"]), vectors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"an entry of the item log cannot be read: {error!r}") from None


def item_table(item_id: str, values: Mapping[str, Any], like: pa.Schema, fields: Fields) -> pa.Table:
    """One item in the form of a release's catalogue; fields that are not given are null.

    Args:
        item_id: Its id.
        values: Field to value, as JSON has it.
        like: The catalogue's columns.
        fields: What they are used for.

    Raises:
        ConfigError: Naming the field that is unknown, or whose value does not fit its type.
    """
    known = [name for name in like.names if name != schema.ITEM_ID]
    for name in values:
        if name not in known:
            raise ConfigError(f"fields.{name}", name, ", ".join(known), "The catalogue has no such field.")
    columns = [_column(name, values.get(name), like.field(name).type, fields) for name in known]
    ids = pa.array([item_id], like.field(schema.ITEM_ID).type)
    return pa.table([ids, *columns], [schema.ITEM_ID, *known]).select(like.names).cast(like)


def clean_id(item_id: str) -> str:
    """The id as prepare would have it.

    Raises:
        ConfigError: When nothing is left of it.
    """
    cleaned: str | None = validate.clean_ids(pa.chunked_array([[item_id]], pa.string()))[0].as_py()
    if cleaned is None:
        raise ConfigError("item_id", item_id, "text that is not empty", validate.MISSING_ITEM)
    return cleaned


def decode_picture(text: str) -> bytes:
    """The bytes of a picture that came as base64.

    Raises:
        ConfigError: When they are no picture within the limits of prepare.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ConfigError("picture", text[:20], "base64") from None
    reason = validate.check_picture(data, PictureLimits()).reason
    if reason is not None:
        raise ConfigError("picture", f"{len(data)} bytes", ", ".join(validate.PICTURE_FORMATS), reason)
    return data


def _column(name: str, value: Any, kind: pa.DataType, fields: Fields) -> pa.Array:
    if value is None:
        return pa.nulls(1, kind)
    if name in fields.vectors:
        value = _vector(name, value, fields.vectors[name])
    elif pa.types.is_temporal(kind):
        return _moment(name, value, kind)
    elif not _fits(value, kind):
        raise _wrong(name, value, kind)
    try:
        return pa.array([value], _plain(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):
        raise _wrong(name, value, kind) from None


def _vector(name: str, value: Any, dim: int) -> list[float]:
    numbers = value if isinstance(value, list) else []
    if len(numbers) != dim or not all(_is_number(number) for number in numbers):
        raise ConfigError(f"fields.{name}", f"{len(numbers)} values", f"{dim} numbers", validate.BAD_VECTOR)
    with np.errstate(over="ignore"):
        if not np.isfinite(np.array(numbers, np.float64).astype(np.float32)).all():
            raise ConfigError(f"fields.{name}", "too large a number", f"{dim} numbers", validate.BAD_VECTOR)
    return [float(number) for number in numbers]


def _moment(name: str, value: Any, kind: pa.DataType) -> pa.Array:
    if not isinstance(value, str):
        raise _wrong(name, value, kind)
    times, problems = validate.parse_timestamps(pa.chunked_array([[value]], pa.string()), "s")
    for reason, mask in problems.items():
        if mask.any():
            raise ConfigError(f"fields.{name}", value, "a date or time in ISO 8601", reason)
    try:
        return pa.array(times, pa.timestamp("us")).cast(kind, safe=False)
    except pa.ArrowNotImplementedError:
        raise _wrong(name, value, kind) from None


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether a JSON value is of the type; Arrow alone would turn True into 1, and a number into text."""
    kind = _plain(kind)
    if is_list(kind):
        return isinstance(value, list) and all(one is None or _fits(one, kind.value_type) for one in value)
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool)
    if pa.types.is_floating(kind):
        return _is_number(value)
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _wrong(name: str, value: Any, kind: pa.DataType) -> ConfigError:
    shown = value if isinstance(value, bool | int | float) else str(value)[:40]
    return ConfigError(f"fields.{name}", shown, f"a value of type {kind}, or null")


def _bytes(vector: FloatArray) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()
