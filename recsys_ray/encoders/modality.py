"""The modalities of an item: their settings, and the protocols of what encodes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.config import Config, execution
from recsys_ray.encoders.inputs import ModalityInputs
from recsys_ray.encoders.precision import Precision

TEXT = "text"
IMAGE = "image"
ATTRIBUTES = "attributes"
ID = "id"
VECTORS_PREFIX = "vectors:"

BackboneMode = Literal["frozen", "lora", "full"]


class LoraConfig(Config):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685) beside every linear layer of a backbone.

    Attributes:
        rank: Of each adapter.
        alpha: An adapter's answer is scaled by alpha / rank.
    """

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)


class TextConfig(Config):
    """Text fields by a language model.

    Attributes:
        backbone: "package:minilm", or the folder or hub id of any Hugging Face encoder.
        mode: "frozen" computes features once; "full" trains the backbone with the towers, "lora" adapters beside its
            frozen layers, which are merged into it at the end.
        lora: The adapters of mode "lora".
        checkpointing: Where the backbone is trained, keep the activations of layer borders only and make the others
            again in the backward pass.
        max_tokens: Longer texts are cut.
        precision: Of matrix products when features are computed; "auto" is bf16 where the device has it in hardware.
            On MiniLM that is 2.5 times as fast, and its vectors have a cosine above .9999 to those of fp32.
        batch_size: Texts encoded at once.
    """

    backbone: str = Field("package:minilm", min_length=1)
    mode: BackboneMode = "frozen"
    lora: LoraConfig = LoraConfig()
    checkpointing: bool = execution(False)
    max_tokens: int = Field(128, ge=4, le=8192)
    precision: Precision = "auto"
    batch_size: int = execution(64, ge=1)

    @property
    def trained(self) -> bool:
        """Whether the backbone, or adapters in it, learn with the towers."""
        return self.mode != "frozen"


class ImageConfig(Config):
    """Pictures by a vision model.

    Attributes:
        backbone: "package:efficientnet_lite0", or the folder or hub id of any Hugging Face vision model.
        mode: As for text.
        lora: As for text.
        checkpointing: As for text.
        precision: As for text. On EfficientNet-Lite0 bf16 is 1.7 times as fast, but of the ten nearest of a picture
            only nine stay the same (cosine .998), so fp32 is the default.
        batch_size: Pictures encoded at once.
    """

    backbone: str = Field("package:efficientnet_lite0", min_length=1)
    mode: BackboneMode = "frozen"
    lora: LoraConfig = LoraConfig()
    checkpointing: bool = execution(False)
    precision: Precision = "fp32"
    batch_size: int = execution(16, ge=1)

    @property
    def trained(self) -> bool:
        """As for text."""
        return self.mode != "frozen"


class AttributesConfig(Config):
    """Categorical and numeric attributes.

    Attributes:
        max_tokens: The first so many attribute tokens of an item are read.
    """

    max_tokens: int = Field(64, ge=1)


class VectorsConfig(Config):
    """Precomputed vectors (audio, video, …), each column a modality of its own.

    Attributes:
        columns: Which of the dataset's vector columns; "auto" takes all.
    """

    columns: tuple[str, ...] | Literal["auto"] = "auto"


class IdConfig(Config):
    """A learned vector for each known item, added to what its content says."""


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
