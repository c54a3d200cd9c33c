"""Checks of single values and columns, shared by prepare and live upserts. Each failed check has one fixed reason."""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from pydantic import Field

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray
from recsys_ray.core.config import Config

MALFORMED_LINE = "malformed line"
MISSING_USER = "missing user_id"
MISSING_ITEM = "missing item_id"
MISSING_TIMESTAMP = "missing timestamp"
BAD_TIMESTAMP = "unparsable timestamp"
TIMESTAMP_RANGE = "timestamp outside 1900 to 2200"
MISSING_WEIGHT = "missing weight"
NAN_WEIGHT = "NaN weight"
NEGATIVE_WEIGHT = "negative weight"
INFINITE_WEIGHT = "infinite weight"
UNKNOWN_ITEM = "unknown item"
DUPLICATE_EVENT = "duplicate event"
DUPLICATE_ITEM = "duplicate item_id"
DUPLICATE_USER = "duplicate user_id"
BAD_VECTOR = "vector of another length or not finite"
OUTSIDE_CORE = "outside the k-core"
NO_EVENTS = "user without events"
UNUSED_EXPOSURE = "exposure of a user or an item without events, or in a held-out file"
PICTURE_OUTSIDE = "picture path leaves the images folder"
PICTURE_MISSING = "missing picture"
PICTURE_UNDECODABLE = "undecodable picture"
PICTURE_TOO_MANY_BYTES = "picture over max_bytes"
PICTURE_TOO_MANY_PIXELS = "picture over max_pixels"

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")


class PictureLimits(Config):
    """What a picture may be at most.

    Attributes:
        max_bytes: Largest picture file.
        max_pixels: Largest width times height; checked before anything is decoded.
    """

    max_bytes: int = Field(20 * 1024**2, ge=1)
    max_pixels: int = Field(50_000_000, ge=1, le=Image.MAX_IMAGE_PIXELS or 89_478_485)


TimeUnit = Literal["s", "ms", "us", "ns"]
Problems = dict[str, BoolArray]
"""Reason to (n,) mask of the rows that have it, the most basic reason first."""

_MICROSECONDS = {"s": 1_000_000.0, "ms": 1000.0, "us": 1.0, "ns": 0.001}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EARLIEST_US = (datetime(1900, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LATEST_US = (datetime(2200, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)


def clean_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """External ids as trimmed strings; null where there is none (null, empty, NaN). 12.0 becomes "12"."""
    column = plain(column)
    if pa.types.is_floating(column.type):
        finite = pc.if_else(pc.is_finite(column), column, None)
        whole = pc.equal(finite, pc.floor(finite))
        if pc.all(whole, min_count=0).as_py():
            return pc.cast(pc.cast(finite, pa.int64()), pa.string())
        numbers = pc.cast(pc.if_else(whole, finite, None), pa.int64())
        return pc.coalesce(pc.cast(numbers, pa.string()), pc.cast(finite, pa.string()))
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def parse_timestamps(column: pa.ChunkedArray, unit: TimeUnit) -> tuple[IntArray, Problems]:
    """Timestamps as microseconds since 1970 (0 where there is a problem).

    Args:
        column: Numbers, numbers as text, ISO 8601 text (UTC where it names no zone), dates or Arrow timestamps.
        unit: The unit of numbers.
    """
    column = plain(column)
    missing = _is_missing(column)
    if pa.types.is_temporal(column.type):
        parsed = pc.cast(pc.cast(column, pa.timestamp("us"), safe=False), pa.int64())
    elif _is_number(column.type):
        parsed = _microseconds(column, unit)
    elif pa.types.is_string(column.type):
        parsed = _timestamps_of_text(pc.utf8_trim_whitespace(column), unit)
    else:
        parsed = pa.chunked_array([pa.nulls(len(column), pa.int64())])
    bad = _mask(pc.is_null(parsed)) & ~missing
    values = _numpy(pc.fill_null(parsed, 0)).astype(np.int64)
    outside = (values < _EARLIEST_US) | (values > _LATEST_US)
    return np.where(outside, 0, values), {MISSING_TIMESTAMP: missing, BAD_TIMESTAMP: bad, TIMESTAMP_RANGE: outside}


def parse_weights(column: pa.ChunkedArray) -> tuple[FloatArray, Problems]:
    """Weights as float32 (0 where there is a problem): finite numbers of at least 0."""
    column = plain(column)
    missing = _is_missing(column)
    if pa.types.is_string(column.type):
        column = _each_text(pc.utf8_trim_whitespace(column), float, pa.float64())
    numbers = _numpy(pc.cast(column, pa.float64(), safe=False) if _is_number(column.type) else None, len(column))
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32)
    usable = np.isfinite(values) & (values >= 0)
    return np.where(usable, values, np.float32(0)), {
        MISSING_WEIGHT: missing,
        NAN_WEIGHT: np.isnan(values) & ~missing,
        NEGATIVE_WEIGHT: values < 0,
        INFINITE_WEIGHT: np.isposinf(values),
    }


@dataclass(frozen=True)
class Picture:
    """A picture that was looked at.

    Attributes:
        reason: Why it cannot be used, None for a good one.
        sha256: Hex digest of the bytes of a good one.
        suffix: File name suffix of its format, e.g. "jpeg", of a good one.
    """

    reason: str | None
    sha256: str | None = None
    suffix: str | None = None


def check_picture(source: Path | bytes, limits: PictureLimits) -> Picture:
    """Decode one picture within the limits."""
    with _bombs_are_errors():
        return _check(source, limits)


def check_pictures(sources: list[Path | bytes], limits: PictureLimits, threads: int) -> Iterator[Picture]:
    """`check_picture` for many, in order, by several threads (decoding releases the GIL)."""
    with _bombs_are_errors(), ThreadPoolExecutor(threads) as pool:
        yield from pool.map(lambda source: _check(source, limits), sources)


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    # PIL warns where a header promises too many pixels. Warning filters belong to the process, so they are set
    # once around all threads.
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _check(source: Path | bytes, limits: PictureLimits) -> Picture:
    try:
        num_bytes = len(source) if isinstance(source, bytes) else source.stat().st_size
        if num_bytes > limits.max_bytes:
            return Picture(PICTURE_TOO_MANY_BYTES)
        data = source if isinstance(source, bytes) else source.read_bytes()
    except OSError:
        return Picture(PICTURE_MISSING)
    return _decode(data, limits)


def _decode(data: bytes, limits: PictureLimits) -> Picture:
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            if picture.width * picture.height > limits.max_pixels:
                return Picture(PICTURE_TOO_MANY_PIXELS)
            # A JPEG decodes at an eighth of its size in a fraction of the time, and a truncated one still fails.
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            picture.load()
            suffix = str(picture.format).lower()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return Picture(PICTURE_TOO_MANY_PIXELS)
    except Exception:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more; all mean the same here.
        return Picture(PICTURE_UNDECODABLE)
    return Picture(None, hashlib.sha256(data).hexdigest(), suffix)


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary encoding, and with one string type instead of three."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = pc.cast(column, kind.value_type), kind.value_type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        column = pc.cast(column, pa.string())
    return pc.cast(column, pa.string()) if pa.types.is_null(kind) else column


def _is_missing(column: pa.ChunkedArray) -> BoolArray:
    missing = pc.is_null(column)
    if pa.types.is_string(column.type):
        missing = pc.or_(missing, pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(pc.fill_null(column, ""))), 0))
    return _mask(missing)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _microseconds(numbers: pa.ChunkedArray, unit: TimeUnit) -> pa.Array:
    """int64 microseconds; null where a number is not finite, far out of range as 1e18 so that no product overflows."""
    factor = _MICROSECONDS[unit]
    exact = pa.types.is_integer(numbers.type)
    if exact and factor >= 1:
        limit = 10**18 // int(factor)
        values = _numpy(pc.cast(pc.fill_null(numbers, 0), pa.int64(), safe=False)).clip(-limit, limit) * int(factor)
    elif exact:
        values = _numpy(pc.cast(pc.fill_null(numbers, 0), pa.int64(), safe=False)) // 1000
    else:
        floats = _numpy(pc.cast(numbers, pa.float64(), safe=False)) * factor
        values = np.rint(np.where(np.isfinite(floats), floats, 0).clip(-1e18, 1e18)).astype(np.int64)
        return pa.array(values, mask=~np.isfinite(floats))
    return pa.array(values, mask=_mask(pc.is_null(numbers)))


def _timestamps_of_text(column: pa.ChunkedArray, unit: TimeUnit) -> pa.ChunkedArray | pa.Array:
    # Whole columns of one kind parse in one go; a column with a single bad value goes text by text.
    for number in (pa.int64(), pa.float64()):
        try:
            return _microseconds(pc.cast(column, number), unit)
        except pa.ArrowInvalid:
            continue
    for zone in (None, "UTC"):
        try:
            return pc.cast(pc.cast(column, pa.timestamp("us", zone)), pa.int64())
        except pa.ArrowInvalid:
            continue
    return _each_text(column, lambda text: _timestamp_of_text(text, unit), pa.int64())


def _timestamp_of_text(text: str, unit: TimeUnit) -> int | None:
    try:
        number = pa.chunked_array([[int(text)]], pa.int64())
    except (ValueError, OverflowError):
        try:
            number = pa.chunked_array([[float(text)]])
        except ValueError:
            moment = datetime.fromisoformat(text)
            zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return (zoned - _EPOCH) // timedelta(microseconds=1)
    parsed: int | None = _microseconds(number, unit)[0].as_py()
    return parsed


def _each_text(column: pa.ChunkedArray, parse: Callable[[str], float | None], kind: pa.DataType) -> pa.ChunkedArray:
    """Parse each different text once; null where `parse` raises ValueError."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = (
            pa.concat_arrays(encoded.chunks) if encoded.num_chunks else pc.dictionary_encode(pa.array([], "string"))
        )
    parsed = []
    for text in encoded.dictionary.to_pylist():
        try:
            parsed.append(parse(text))
        except ValueError:
            parsed.append(None)
    return pa.chunked_array([pa.array(parsed, kind).take(encoded.indices)])


def _mask(column: pa.ChunkedArray | pa.Array) -> BoolArray:
    return np.asarray(_numpy(column), bool)


def _numpy(column: pa.ChunkedArray | pa.Array | None, length: int = 0) -> np.ndarray:
    if column is None:
        return np.full(length, np.nan)
    if isinstance(column, pa.ChunkedArray):
        return np.asarray(column.to_numpy())
    return np.asarray(column.to_numpy(zero_copy_only=False))
