"""The item tower: each modality to a vector, mixed under the mask of what is missing, to one unit vector."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from recsys_ray.encoders.inputs import ItemInputs, ModalityInputs
from recsys_ray.encoders.modality import clean


class FrozenFeatures(nn.Module):
    """A projection of feature vectors computed before training."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
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
        """Run the backbone on its tensors, then project."""
        projected: Tensor = self.projection(self.backbone(values))
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


class ItemTower(nn.Module):
    """Items to unit vectors: the sum over the modalities an item has, divided by the root of how many those are.

    An item that has none of them gets a learned vector. In training whole modalities are hidden at random, never all
    of an item, so that any subset (a text query, an item nobody has met) answers in the same space.

    Args:
        names: Modality names, in the order of `encoders`.
        encoders: One module a modality, from its named tensors to (n, D).
        dropouts: Probability that a modality of an item is hidden in training, in the same order.
        alone: Probability that an item shows one modality alone in training.
        dim: Length D of the vectors.
    """

    def __init__(
        self, names: Sequence[str], encoders: Sequence[nn.Module], dropouts: Sequence[float], alone: float, dim: int
    ) -> None:
        super().__init__()
        self.names = tuple(names)
        self.dropouts = tuple(dropouts)
        self.alone = alone
        # A list, since module names may not hold every character that a column name may.
        self.encoders = nn.ModuleList(encoders)
        self.empty = nn.Parameter(torch.randn(dim) / math.sqrt(dim))

    def forward(self, inputs: ItemInputs) -> Float[Tensor, "n D"]:
        """Encode n items; modalities that `inputs` does not name count as missing."""
        present = self.presence(inputs)
        shown = present
        if self.training:
            shown = hide(present, torch.tensor(self.dropouts, device=present.device), self.alone)
        total = torch.zeros((len(present), len(self.empty)), device=present.device)
        for column, (name, encoder) in enumerate(zip(self.names, self.encoders, strict=True)):
            if name in inputs.values:
                mask = shown[:, column]
                vectors = encoder({key: clean(tensor, mask) for key, tensor in inputs.values[name].items()})
                total = total + clean(vectors.float(), mask)
        count = shown.sum(1, keepdim=True)
        mixed = torch.where(count > 0, total / count.clamp(min=1).sqrt(), self.empty.float())
        return F.normalize(mixed, dim=-1)

    def presence(self, inputs: ItemInputs) -> Bool[Tensor, "n M"]:
        """Which of its modalities each item has."""
        absent = torch.zeros_like(next(iter(inputs.present.values())))
        return torch.stack([inputs.present.get(name, absent) for name in self.names], dim=1)


def hide(present: Bool[Tensor, "n M"], dropouts: Float[Tensor, " M"], alone: float) -> Bool[Tensor, "n M"]:
    """Hide modalities at random; of an item that would lose all of them, and of some others, one alone stays."""
    draw = torch.rand(present.shape, device=present.device)
    kept = present & (draw >= dropouts)
    # The one that stays is drawn evenly from those the item has.
    luck = torch.rand(present.shape, device=present.device).masked_fill(~present, -1)
    one = F.one_hot(luck.argmax(1), present.shape[1]).bool() & present
    several = kept.any(1, keepdim=True) & (torch.rand(len(present), 1, device=present.device) >= alone)
    return torch.where(several, kept, one)
