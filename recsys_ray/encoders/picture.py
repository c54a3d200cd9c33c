"""Pictures: decoding them, and making them the size and scale a vision model reads."""

import io
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from recsys_ray.core.errors import DataError

Picture = str | Path | bytes
Pixels = npt.NDArray[np.uint8]
Scaling = tuple[float, list[float], list[float]]

_PIXEL_SETTINGS = ("do_", "size", "crop", "resample", "rescale", "image_", "pad", "patch")
_LITE_SHORT_SIDE = 256
_LITE_CROP = 224
# JPEG decoders skip what a picture of this size does not need.
_DRAFT_SIDE = 512


@runtime_checkable
class Processor(Protocol):
    """Pictures to pixels of one size, and what scales those for the model."""

    def resize(self, pictures: list[Image.Image]) -> Pixels:
        """(n, 3, H, W)."""
        ...

    @property
    def scaling(self) -> Scaling:
        """Factor, mean and standard deviation: the model reads (pixels * factor - mean) / std."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that the pixels depend on beside the picture, as JSON values."""
        ...

    def save_pretrained(self, directory: Path) -> None:
        """Write its settings."""
        ...


class HubProcessor:
    """A Hugging Face image processor, its scaling left to the model's device so that pixels travel as bytes."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def resize(self, pictures: list[Image.Image]) -> Pixels:
        """(n, 3, H, W)."""
        arrays = self._processor(images=pictures, do_rescale=False, do_normalize=False, return_tensors="np")
        return np.ascontiguousarray(np.asarray(arrays["pixel_values"]).round().clip(0, 255), dtype=np.uint8)

    @property
    def scaling(self) -> Scaling:
        """Factor, mean and standard deviation."""
        settings = self._processor.to_dict()
        factor = float(settings["rescale_factor"]) if settings.get("do_rescale") else 1.0
        if not settings.get("do_normalize"):
            return factor, [0.0] * 3, [1.0] * 3
        return factor, list(map(float, settings["image_mean"])), list(map(float, settings["image_std"]))

    @property
    def settings(self) -> dict[str, Any]:
        """Sizes, crops, resampling, scaling."""
        settings = self._processor.to_dict()
        # The rest names classes and says in what form arrays come back.
        return {name: value for name, value in settings.items() if name.startswith(_PIXEL_SETTINGS)}

    def save_pretrained(self, directory: Path) -> None:
        """Write its settings."""
        self._processor.save_pretrained(directory)


class LiteProcessor:
    """For EfficientNet-Lite0: short side 256, centre crop 224, (pixels - 127) / 128."""

    @property
    def scaling(self) -> Scaling:
        """Factor, mean and standard deviation."""
        return 1.0, [127.0] * 3, [128.0] * 3

    @property
    def settings(self) -> dict[str, Any]:
        """Short side and crop."""
        return {"short_side": _LITE_SHORT_SIDE, "crop": _LITE_CROP}

    def resize(self, pictures: list[Image.Image]) -> Pixels:
        """(n, 3, 224, 224)."""
        return np.stack([self._one(picture) for picture in pictures])

    def save_pretrained(self, directory: Path) -> None:
        """Nothing to write: all of it is in the code."""

    def _one(self, picture: Image.Image) -> Pixels:
        """Crop and resize in one step: only what stays is computed."""
        side = min(picture.size) * _LITE_CROP / _LITE_SHORT_SIDE
        left, top = (picture.width - side) / 2, (picture.height - side) / 2
        box = (left, top, left + side, top + side)
        small = picture.resize((_LITE_CROP, _LITE_CROP), Image.Resampling.BICUBIC, box=box)
        return np.ascontiguousarray(np.asarray(small, np.uint8).transpose(2, 0, 1))


def open_picture(piece: Picture) -> Image.Image:
    """Decode a picture from a path or from bytes, upright, in RGB.

    Raises:
        DataError: When it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(piece) if isinstance(piece, bytes) else piece) as image:
            image.draft("RGB", (_DRAFT_SIDE, _DRAFT_SIDE))
            return ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = f"of {len(piece)} bytes" if isinstance(piece, bytes) else str(piece)
        raise DataError(f"picture {name} cannot be decoded: {error}") from None
