"""Augmentation: texts with words and fields left out, pictures cropped and mirrored, by (seed, epoch, item) alone.

What an item looks like in an epoch follows from these three, so it is the same on any number of workers and after a run
was cut. Validation and embedding never see it.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recsys_ray.core.errors import DataError
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs, ModalityInputs
from recsys_ray.encoders.modality import IMAGE, TEXT

_WORDS, _LINES, _VIEWS = range(3)  # streams of random numbers
_PER_ITEM = 1 << 20  # random numbers a stream has for each item
_PICTURES_AT_ONCE = 64


class Augmentation:
    """What training sees of items.

    Args:
        config: Which probabilities, and how much of a picture.
        words: (2, N, L) the word and the line of each token, see `TextBackbone.words`; None where texts stay whole.
        seed: The run's.

    Raises:
        DataError: When texts are to lose words and `words` is not there.
    """

    def __init__(self, config: TwoTowerConfig, words: Int[Tensor, "2 N L"] | None, seed: int) -> None:
        self._text = config.text if config.text is not None and config.text.augmented else None
        self._image = config.image if config.image is not None and config.image.augmented else None
        self._words, self._seed = words, seed
        if self._text is not None and words is None:
            raise DataError("model.text.drop_words or drop_fields is above 0, and the words of the texts are not known")

    def texts(self, items: ItemInputs, rows: Int[Tensor, " m"], epoch: int) -> ItemInputs:
        """The items, which are those of the catalogue rows, with words and lines left out of their texts."""
        if self._text is None or self._words is None or TEXT not in items.values:
            return items
        words, lines = (part[rows].long() for part in self._words)
        keys = rows.numpy(), words.shape[1]
        lucky = [
            torch.from_numpy(uniform((self._seed, epoch, stream), *keys) >= probability).gather(1, part.clamp(min=0))
            for stream, part, probability in (
                (_WORDS, words, self._text.drop_words),
                (_LINES, lines, self._text.drop_fields),
            )
        ]
        kept = (words >= 0) & lucky[0] & lucky[1]
        # A text that would lose everything stays whole; what is part of no word (the first and the last token) stays.
        kept = kept | (words < 0) | ~kept.any(1, keepdim=True)
        return ItemInputs({**items.values, TEXT: _without(items.values[TEXT], kept)}, items.present)

    def views(self, rows: Int[Tensor, " m"], epoch: int) -> Float[Tensor, "m 4"] | None:
        """What is seen of the pictures of some catalogue rows, for `look`; None where they stay whole.

        Returns:
            Side of the square as a share of the whole, its left and its top, and 1 for the mirror image.
        """
        if self._image is None:
            return None
        drawn = uniform((self._seed, epoch, _VIEWS), rows.numpy(), 4)
        side = np.sqrt(self._image.crop + (1 - self._image.crop) * drawn[:, 0])
        left, top = drawn[:, 1] * (1 - side), drawn[:, 2] * (1 - side)
        mirrored = drawn[:, 3] < self._image.flip
        return torch.from_numpy(np.stack([side, left, top, mirrored], axis=1).astype(np.float32))


def look(items: ItemInputs, views: Float[Tensor, "m 4"] | None) -> ItemInputs:
    """The items with what is seen of their pictures, as large as before; on whatever device they are."""
    if views is None or IMAGE not in items.values:
        return items
    pixels = items.values[IMAGE]["pixels"]
    parts = zip(*(torch.split(one, _PICTURES_AT_ONCE) for one in (pixels, views)), strict=True)
    seen = [_look(some, view) for some, view in parts]
    return replace(items, values={**items.values, IMAGE: {"pixels": torch.cat(seen)}})


def uniform(key: tuple[int, int, int], rows: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.float64]:
    """(m, count) numbers in [0, 1) that follow from the key and each row alone.

    A counter through the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators").
    """
    start = np.random.SeedSequence(key).generate_state(1, np.uint64)
    counter = rows.astype(np.uint64)[:, None] * np.uint64(_PER_ITEM) + np.arange(1, count + 1, dtype=np.uint64)
    mixed: Any = start + counter * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed = mixed ^ (mixed >> np.uint64(31))
    return np.asarray(mixed >> np.uint64(11), np.float64) * 2.0**-53


def _without(tokens: ModalityInputs, kept: Tensor) -> ModalityInputs:
    """The kept tokens moved together, the others masked behind them."""
    order = (~kept).int().argsort(dim=1, stable=True)
    mask = (tokens["attention_mask"] * kept).gather(1, order)
    return {"input_ids": tokens["input_ids"].gather(1, order), "attention_mask": mask}


def _look(pixels: Tensor, views: Tensor) -> Tensor:
    side, left, top, mirrored = views.unbind(1)
    nothing = torch.zeros_like(side)
    # From places in what is seen to places in the picture, both from -1 to 1.
    across = torch.stack([side * (1 - 2 * mirrored), nothing, 2 * left + side - 1], dim=1)
    down = torch.stack([nothing, side, 2 * top + side - 1], dim=1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), list(pixels.shape), align_corners=False)
    seen = F.grid_sample(pixels.float(), grid, padding_mode="border", align_corners=False)
    return seen.round().clamp(0, 255).to(pixels.dtype)
