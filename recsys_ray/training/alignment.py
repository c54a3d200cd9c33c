"""Text and image alignment: an item's words and its picture, each alone, are drawn together in the towers' space."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.modality import IMAGE, TEXT
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.negatives import gather_with_gradient, slice_bounds


@dataclass(frozen=True)
class Pairs:
    """One rank's share of the items of a step whose text and picture are aligned.

    Attributes:
        rows: Catalogue rows of this rank's items.
        places: Where they stand among those of all ranks.
        count: Items of all ranks together; 0 where nothing is aligned.
        weight: Of the alignment in the loss.
    """

    rows: Int[Tensor, " b"]
    places: Int[Tensor, " b"]
    count: int
    weight: float

    def to(self, device: torch.device) -> "Pairs":
        """The same share on a device."""
        return Pairs(self.rows.to(device), self.places.to(device), self.count, self.weight)


class PairSampler:
    """Draws the items to align, evenly and without repetition from those that have a text and a picture.

    The generator is seeded by (seed, step) alone, so that every rank draws the same and takes its slice.

    Args:
        inputs: The catalogue.
        config: `alignment`, `alignment_items` and the seed.
        place: (rank, world size).

    Raises:
        ConfigError: When there is to be an alignment and not two items have both.
    """

    def __init__(self, inputs: ItemInputs, config: TrainingConfig, place: tuple[int, int]) -> None:
        self._weight, self._seed, self._place = config.alignment, config.seed, place
        self._rows = _with_both(inputs) if config.alignment else np.zeros(0, np.int64)
        self._count = min(config.alignment_items, len(self._rows))
        if config.alignment and self._count < 2:
            raise ConfigError(
                "training.alignment", config.alignment, "0 here", "No two items have a text and a picture to align."
            )

    def draw(self, step: int) -> Pairs:
        """This rank's share of a step."""
        start, end = slice_bounds(self._count, *self._place)
        # The third number keeps this stream apart from that of the negatives.
        drawn = np.random.default_rng([self._seed, step, 1]).choice(self._rows, self._count, replace=False)
        return Pairs(torch.from_numpy(drawn[start:end]), torch.arange(start, end), self._count, self._weight)


def show_alone(items: ItemInputs, count: int) -> ItemInputs:
    """Of the last 2 · count items, show the first half by their text alone, the second by their picture alone."""
    first, second = len(items) - 2 * count, len(items) - count
    present = {}
    for name, mask in items.present.items():
        present[name] = mask.clone()
        present[name][first:second] &= name == TEXT
        present[name][second:] &= name == IMAGE
    return ItemInputs(items.values, present)


def alignment_loss(vectors: Float[Tensor, "2 b D"], pairs: Pairs, temperature: float) -> Float[Tensor, ""]:
    r"""This rank's part of the symmetric InfoNCE; over all ranks the parts add up to the mean over the step's items.

    With :math:`s_{ij} = t_i \cdot p_j / \tau` over the texts t and the pictures p of a items it is

    .. math:: -\frac{1}{2a} \sum_i \Bigl(\log \frac{e^{s_{ii}}}{\sum_j e^{s_{ij}}}
              + \log \frac{e^{s_{ii}}}{\sum_j e^{s_{ji}}}\Bigr)

    (CLIP: Radford et al. 2021, arXiv:2103.00020, figure 3.)

    Args:
        vectors: Of this rank's texts, and of the pictures of the same items.
        pairs: Which those are.
        temperature: τ.
    """
    of_all = gather_with_gradient(vectors.transpose(0, 1).flatten(1), pairs.count)
    texts, pictures = of_all.chunk(2, dim=1)
    by_text = F.cross_entropy((vectors[0] @ pictures.T).float() / temperature, pairs.places, reduction="sum")
    by_picture = F.cross_entropy((vectors[1] @ texts.T).float() / temperature, pairs.places, reduction="sum")
    return (by_text + by_picture) / (2 * pairs.count)


def _with_both(inputs: ItemInputs) -> IntArray:
    """Rows of the items that have a text and a picture."""
    if TEXT not in inputs.present or IMAGE not in inputs.present:
        return np.zeros(0, np.int64)
    rows: IntArray = np.flatnonzero((inputs.present[TEXT] & inputs.present[IMAGE]).numpy())
    return rows
