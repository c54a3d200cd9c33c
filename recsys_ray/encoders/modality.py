"""The modalities of an item: their settings, and the protocols of what encodes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from torch import Tensor

from recsys_ray.core.arrays import FloatArray
from recsys_ray.encoders.inputs import ModalityInputs

TEXT = "text"
IMAGE = "image"
ATTRIBUTES = "attributes"
ID = "id"
VECTORS_PREFIX = "vectors:"


@runtime_checkable
class Backbone(Protocol):
    """A pretrained model of one modality: pieces (texts, or paths and bytes of pictures) to feature vectors."""

    @property
    def id(self) -> str:
        """Hash of configuration, weights and preprocessing: names the space of its features."""
        ...

    @property
    def dim(self) -> int:
        """Length F of a feature vector."""
        ...

    def preprocess(self, pieces: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
        """On the CPU: pieces to named arrays, first dimension n."""
        ...

    def blank(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays of one empty piece: shapes and types where a catalogue has none."""
        ...

    def __call__(self, values: ModalityInputs) -> Float[Tensor, "n F"]:
        """Named tensors to features, with gradients where it is trained."""
        ...

    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        """(n, F) features of n pieces, without gradients."""
        ...

    def save(self, directory: Path) -> None:
        """Write a folder from which it loads again, without a network and without the package it came from."""
        ...


def vectors_modality(column: str) -> str:
    """The modality name of a column of precomputed vectors."""
    return f"{VECTORS_PREFIX}{column}"


def clean(values: Tensor, present: Bool[Tensor, " n"]) -> Tensor:
    """Zero the rows that are absent, so that neither garbage nor NaN under a missing modality reaches a gradient."""
    shape = (len(present),) + (1,) * (values.dim() - 1)
    return values.masked_fill(~present.view(shape), 0)
