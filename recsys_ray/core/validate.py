"""Checks of single values and columns, shared by prepare and live upserts. Each failed check has one fixed reason."""

import hashlib
import io
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from pydantic import Field

from recsys_ray.core.config import Config

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


@dataclass(frozen=True)
class Picture:
    """A picture that was looked at.

    Attributes:
        reason: Why it cannot be used, None for a good one.
        sha256: Hex digest of its bytes, None when they were not read.
    """

    reason: str | None
    sha256: str | None = None


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
    reason = _decode(data, limits)
    return Picture(reason, None if reason else hashlib.sha256(data).hexdigest())


def _decode(data: bytes, limits: PictureLimits) -> str | None:
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
            if picture.width * picture.height > limits.max_pixels:
                return PICTURE_TOO_MANY_PIXELS
            # A JPEG decodes at an eighth of its size in a fraction of the time, and a truncated one still fails.
            picture.draft("RGB", (picture.width // 8, picture.height // 8))
            picture.load()
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return PICTURE_TOO_MANY_PIXELS
    except Exception:
        # Decoders raise OSError, SyntaxError, ValueError, struct.error and more; all mean the same here.
        return PICTURE_UNDECODABLE
    return None
