"""The item tower: each modality to a vector, mixed under the mask of what is missing, to one unit vector."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recsys_ray.encoders.inputs import ItemInputs, ModalityInputs
from recsys_ray.encoders.modality import ID, clean


class FrozenFeatures(nn.Module):
    """A projection of feature vectors computed before training."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.width = num_features
        self.projection = Projection(num_features, dim)

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n D"]:
        """Project the "vector" tensor, (n, F)."""
        projected: Tensor = self.projection(values["vector"])
        return projected


class TrainedBackbone(nn.Module):
    """A backbone that is trained with the towers, and a projection of what it says."""

    def __init__(self, backbone: nn.Module, num_features: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.projection = Projection(num_features, dim)

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n D"]:
        """Run the backbone on its tensors, or take what it made of them elsewhere ("vector", (n, F)); then project."""
        features = values["vector"] if "vector" in values else self.backbone(values)
        projected: Tensor = self.projection(features)
        return projected


class Attributes(nn.Module):
    """The mean of attribute token vectors plus a projection of the numeric attributes."""

    def __init__(self, num_tokens: int, num_numeric: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.EmbeddingBag(num_tokens, dim, mode="mean", padding_idx=0)
        self.numeric = nn.Linear(num_numeric, dim) if num_numeric else None
        nn.init.normal_(self.tokens.weight, std=1 / math.sqrt(dim))

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n D"]:
        """Read "tokens" (n, T), 0 is padding, and "numeric" (n, F) where the catalogue has numeric fields."""
        vectors: Tensor = self.tokens(values["tokens"].long())
        return vectors if self.numeric is None else vectors + self.numeric(values["numeric"])


class IdResidual(nn.Module):
    """One learned vector a known item."""

    def __init__(self, num_items: int, dim: int) -> None:
        super().__init__()
        self.rows = nn.Embedding(num_items, dim)
        nn.init.normal_(self.rows.weight, std=1 / math.sqrt(dim))

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n D"]:
        """Read the "row" tensor, (n,)."""
        vectors: Tensor = self.rows(values["row"].long())
        return vectors


class Projection(nn.Module):
    """Features of any scale to vectors of about unit length."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(num_features, elementwise_affine=False)
        self.linear = nn.Linear(num_features, dim)
        nn.init.normal_(self.linear.weight, std=1 / math.sqrt(num_features * dim))

    def forward(self, features: Float[Tensor, "n F"]) -> Float[Tensor, "n D"]:
        """Normalise, then project."""
        projected: Tensor = self.linear(self.norm(features.float()))
        return projected


class ContentHead(nn.Module):
    """What the tower takes an item for whose id it does not know: a new item, a text, a picture.

    It is taught to give, from content alone, the vectors that known items have (the loss is `imitation`), and teaches
    nothing back: what the tower knows of known items is as good as without it. In training whole modalities are hidden
    at random, never all of an item, so that it answers to any subset of them.

    Args:
        widths: Length of the features of each content modality.
        dropout: Probability that a modality of an item is hidden in training.
        alone: Probability that an item shows one modality alone in training.
        dim: Length D of the vectors.
    """

    def __init__(self, widths: Sequence[int], dropout: float, alone: float, dim: int) -> None:
        super().__init__()
        self.dropout, self.alone = dropout, alone
        self.parts = nn.ModuleList(Projection(width, dim) for width in widths)
        self.inner = nn.Linear(dim, 2 * dim)
        self.outer = nn.Linear(2 * dim, dim)

    def forward(
        self, features: Sequence[Float[Tensor, "n _"] | None], present: Bool[Tensor, "n C"]
    ) -> Float[Tensor, "n D"]:
        """Unit vectors from the features of each modality; None where nobody has it."""
        shown = hide(present, self.dropout, self.alone) if self.training else present
        total = torch.zeros((len(present), self.outer.out_features), device=present.device)
        for column, (part, values) in enumerate(zip(self.parts, features, strict=True)):
            if values is not None:
                total = total + clean(part(values).float(), shown[:, column])
        mixed = total / shown.sum(1, keepdim=True).clamp(min=1).sqrt()
        return F.normalize(mixed + self.outer(F.gelu(self.inner(mixed))).float(), dim=-1)


class ItemTower(nn.Module):
    """Items to unit vectors: the sum over the modalities an item has, divided by the root of how many those are.

    An item that has none of them gets a learned vector. Where ids are read, an item whose id is not known is left to
    the content head. Where none are, content modalities are hidden at random in training as in the content head.

    Args:
        names: Modality names, in the order of `encoders`; the id, where it is read, comes last.
        encoders: One module a modality, from its named tensors to (n, D).
        dropout: Probability that a content modality of an item is hidden in training.
        alone: Probability that an item shows one content modality alone in training.
        dim: Length D of the vectors.
    """

    def __init__(
        self, names: Sequence[str], encoders: Sequence[nn.Module], dropout: float, alone: float, dim: int
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.dropout, self.alone = dropout, alone
        # A list, since module names may not hold every character that a column name may.
        self.encoders = nn.ModuleList(encoders)
        self.empty = nn.Parameter(torch.randn(dim) / math.sqrt(dim))
        content = [encoder for name, encoder in zip(names, encoders, strict=True) if name != ID]
        widths = [encoder.width if isinstance(encoder, FrozenFeatures) else dim for encoder in content]
        self.head = ContentHead(widths, dropout, alone, dim) if content and ID in names else None

    def forward(self, inputs: ItemInputs) -> tuple[Float[Tensor, "n D"], Float[Tensor, " n"]]:
        """Encode n items; modalities that `inputs` does not name count as missing.

        Returns:
            Unit vectors, and how far the content head is from those of known items: 1 - cosine, 0 where an item has no
            id or no content. No gradient of it reaches the vectors.
        """
        present = self.presence(inputs)
        hides = self.training and ID not in self.names
        shown = hide(present, self.dropout, self.alone) if hides else present
        vectors, features = self._encode(inputs, shown)
        total = torch.zeros((len(present), len(self.empty)), device=present.device)
        for vector in vectors:
            total = total if vector is None else total + vector
        count = shown.sum(1, keepdim=True)
        mixed = torch.where(count > 0, total / count.clamp(min=1).sqrt(), self.empty.float())
        full = F.normalize(mixed, dim=-1)
        if self.head is None:
            return full, full.new_zeros(len(full))
        content = self.head(features[:-1], present[:, :-1])
        known, told = present[:, -1], present[:, :-1].any(1)
        missed = (1 - (content * full.detach()).sum(1)) * (known & told)
        return torch.where((told & ~known).unsqueeze(1), content, full), missed

    def presence(self, inputs: ItemInputs) -> Bool[Tensor, "n M"]:
        """Which of its modalities each item has."""
        absent = torch.zeros_like(next(iter(inputs.present.values())))
        return torch.stack([inputs.present.get(name, absent) for name in self.names], dim=1)

    def _encode(
        self, inputs: ItemInputs, shown: Bool[Tensor, "n M"]
    ) -> tuple[list[Float[Tensor, "n D"] | None], list[Float[Tensor, "n _"] | None]]:
        """Each modality's vectors, zeros where it is not shown, and what the content head reads of it."""
        vectors: list[Tensor | None] = [None] * len(self.names)
        features: list[Tensor | None] = [None] * len(self.names)
        for column, (name, encoder) in enumerate(zip(self.names, self.encoders, strict=True)):
            if name in inputs.values:
                mask = shown[:, column]
                values = {key: clean(tensor, mask) for key, tensor in inputs.values[name].items()}
                vector = clean(encoder(values).float(), mask)
                vectors[column] = vector
                features[column] = values["vector"] if isinstance(encoder, FrozenFeatures) else vector.detach()
        return vectors, features


def hide(present: Bool[Tensor, "n M"], dropout: float, alone: float) -> Bool[Tensor, "n M"]:
    """Hide modalities at random; of an item that would lose all of them, and of some others, one alone stays."""
    draw = torch.rand(present.shape, device=present.device)
    kept = present & (draw >= dropout)
    # The one that stays is drawn evenly from those the item has.
    luck = torch.rand(present.shape, device=present.device).masked_fill(~present, -1)
    one = F.one_hot(luck.argmax(1), present.shape[1]).bool() & present
    several = kept.any(1, keepdim=True) & (torch.rand(len(present), 1, device=present.device) >= alone)
    return torch.where(several, kept, one)
