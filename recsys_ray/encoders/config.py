"""Settings of the towers and of what each modality is encoded by. Reading them loads no model and no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from recsys_ray.core.config import Config, execution, override

Precision = Literal["auto", "bf16", "fp32"]
BackboneMode = Literal["frozen", "lora", "full"]
Member = Literal["all", "content", "id"]

_DROPOUT, _DROPOUT_SHORT = 0.2, 0.4
_SHORT = 30  # events


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
        drop_words: Probability that a word of an item's text is left out in training, drawn anew each epoch. Only where
            the backbone is trained: frozen features are computed once.
        drop_fields: The same of a line of it, which is a whole field; a text that would lose all of them keeps all.
        precision: Of matrix products when features are computed; "auto" is bf16 where the device has it in hardware.
            On MiniLM that is 2.5 times as fast, and its vectors have a cosine above .9999 to those of fp32.
        batch_size: Texts encoded at once.
    """

    backbone: str = Field("package:minilm", min_length=1)
    mode: BackboneMode = "frozen"
    lora: LoraConfig = LoraConfig()
    checkpointing: bool = execution(False)
    max_tokens: int = Field(128, ge=4, le=8192)
    drop_words: float = Field(0.0, ge=0, lt=1)
    drop_fields: float = Field(0.0, ge=0, lt=1)
    precision: Precision = "auto"
    batch_size: int = execution(64, ge=1)

    @property
    def trained(self) -> bool:
        """Whether the backbone, or adapters in it, learn with the towers."""
        return self.mode != "frozen"

    @property
    def augmented(self) -> bool:
        """Whether training sees other texts than evaluation."""
        return self.drop_words > 0 or self.drop_fields > 0

    @model_validator(mode="after")
    def _features_see_no_augmentation(self) -> "TextConfig":
        if self.augmented and not self.trained:
            raise ValueError('drop_words and drop_fields 0 with mode "frozen": its features are computed once')
        return self


class ImageConfig(Config):
    """Pictures by a vision model.

    Attributes:
        backbone: "package:efficientnet_lite0", or the folder or hub id of any Hugging Face vision model.
        mode: As for text.
        lora: As for text.
        checkpointing: As for text.
        crop: Training sees a random square of a picture, of so much of its area at least, drawn anew each epoch; 1 is
            the whole picture. Only where the backbone is trained: frozen features are computed once.
        flip: Probability that it sees the mirror image.
        precision: As for text. On EfficientNet-Lite0 bf16 is 1.7 times as fast, but of the ten nearest of a picture
            only nine stay the same (cosine .998), so fp32 is the default.
        batch_size: Pictures encoded at once.
    """

    backbone: str = Field("package:efficientnet_lite0", min_length=1)
    mode: BackboneMode = "frozen"
    lora: LoraConfig = LoraConfig()
    checkpointing: bool = execution(False)
    crop: float = Field(1.0, gt=0, le=1)
    flip: float = Field(0.0, ge=0, le=1)
    precision: Precision = "fp32"
    batch_size: int = execution(16, ge=1)

    @property
    def trained(self) -> bool:
        """As for text."""
        return self.mode != "frozen"

    @property
    def augmented(self) -> bool:
        """As for text."""
        return self.crop < 1 or self.flip > 0

    @model_validator(mode="after")
    def _features_see_no_augmentation(self) -> "ImageConfig":
        if self.augmented and not self.trained:
            raise ValueError('crop 1 and flip 0 with mode "frozen": its features are computed once')
        return self


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


class UserTowerConfig(Config):
    """The transformer over a user's history.

    Attributes:
        blocks: Transformer blocks.
        heads: Attention heads; `dim` must be a multiple.
        history: The last so many items are read.
        hidden: Width of the feed-forward layers, as a multiple of `dim`.
        dropout: On inputs and on what each block adds; attention weights have none, which keeps the fast path. "auto"
            is 0.2 for long histories and 0.4 for those of fewer than 30 events on average, which are soon learned by
            heart.
        positions: "rotary" (relative), or "learned" (one vector a position, counted from the end: the place that is
            asked when serving is then trained by the last event of each window alone).
    """

    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    history: int = Field(200, ge=1)
    hidden: int = Field(4, ge=1)
    dropout: Annotated[float, Field(ge=0, lt=1)] | Literal["auto"] = "auto"
    positions: Literal["learned", "rotary"] = "rotary"

    @property
    def rate(self) -> float:
        """The dropout; that for long histories where nothing is known of them."""
        return _DROPOUT if self.dropout == "auto" else self.dropout

    def suited(self, mean_events: float) -> "UserTowerConfig":
        """The settings for users with so many events on average: nothing is "auto" any more."""
        if self.dropout != "auto":
            return self
        return override(self, {"dropout": _DROPOUT_SHORT if mean_events < _SHORT else _DROPOUT})


class TwoTowerConfig(Config):
    """Item tower and user tower. A modality that is null is not read; one that the data lacks is left out.

    Attributes:
        dim: Length D of a member's vectors.
        members: The models of the ensemble, each by the modalities it reads: "all", "content" (all but the id) or "id".
            Their vectors stand side by side, so that the space has D numbers a member.
        temperature: Scores are cosines divided by it in the loss.
        modality_dropout: Probability that a content modality of an item is hidden from the content head in training.
        alone: Probability that an item shows the content head a single modality, as a text query does later.
        text: Text fields.
        image: Pictures.
        attributes: Categorical and numeric attributes.
        vectors: Columns of precomputed vectors.
        id: A learned vector for each known item.
        user: The transformer over the history.
    """

    dim: int = Field(128, ge=4)
    members: tuple[Member, ...] = Field(("all",), min_length=1)
    temperature: float = Field(0.05, gt=0)
    modality_dropout: float = Field(0.2, ge=0, lt=1)
    alone: float = Field(0.3, ge=0, lt=1)
    text: TextConfig | None = TextConfig()
    image: ImageConfig | None = ImageConfig()
    attributes: AttributesConfig | None = AttributesConfig()
    vectors: VectorsConfig | None = VectorsConfig()
    id: IdConfig | None = IdConfig()
    user: UserTowerConfig = UserTowerConfig()

    @property
    def width(self) -> int:
        """Length of the vectors of all members together."""
        return self.dim * len(self.members)

    @model_validator(mode="after")
    def _one_member_trains_backbones(self) -> "TwoTowerConfig":
        trained = [name for name, one in (("text", self.text), ("image", self.image)) if one and one.trained]
        if trained and len(self.members) > 1:
            raise ValueError(f"one member where {' and '.join(trained)} is trained: a backbone is trained once")
        return self

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "TwoTowerConfig":
        if self.dim % self.user.heads:
            raise ValueError(f"a dim that is a multiple of user.heads = {self.user.heads}, not {self.dim}")
        return self
