"""Several towers side by side: an ensemble whose members' vectors stand next to each other in one space.

The dot product of two such vectors is the mean of the members' cosines, so an ensemble needs one index, one search and
one query vector, like a single model. Members are trained on the same steps but learn apart: each has its own loss.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_tower import ItemTower
from recsys_ray.encoders.user_tower import UserTower


class ItemTowers(nn.Module):
    """Item towers side by side; items to unit vectors of M D numbers."""

    def __init__(self, members: Sequence[ItemTower]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def names(self) -> tuple[str, ...]:
        """The modalities that any member reads."""
        return tuple(dict.fromkeys(name for member in self.towers for name in member.names))

    @property
    def towers(self) -> list[ItemTower]:
        """The M members."""
        return [member for member in self.members if isinstance(member, ItemTower)]

    def forward(self, inputs: ItemInputs) -> Float[Tensor, "n MD"]:
        """Encode n items."""
        return self.encode(inputs)[0]

    def encode(self, inputs: ItemInputs) -> tuple[Float[Tensor, "n MD"], Float[Tensor, " n"]]:
        """Encode n items, and how far the members' content heads are from them, see `ItemTower.forward`.

        A member that reads nothing an item has says nothing of it, unless nobody else does either.
        """
        vectors, missed = zip(*(member(inputs) for member in self.members), strict=True)
        parts = torch.stack(vectors, dim=1)
        if len(self.members) > 1:
            knows = torch.stack([member.presence(inputs).any(1) for member in self.towers], dim=1)
            knows = knows | ~knows.any(1, keepdim=True)
            parts = parts * knows.unsqueeze(-1)
        return F.normalize(parts.flatten(1), dim=-1), torch.stack(missed).sum(0)


class UserTowers(nn.Module):
    """User towers side by side, each reading its own part of the item vectors."""

    def __init__(self, members: Sequence[UserTower]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def towers(self) -> list[UserTower]:
        """The M members."""
        return [member for member in self.members if isinstance(member, UserTower)]

    def forward(
        self,
        vectors: Float[Tensor, "B H MD"],
        mask: Bool[Tensor, "B H"],
        user_tokens: Int[Tensor, "B T"] | None,
        newest: bool = False,
    ) -> Float[Tensor, "B L MD"]:
        """See `UserTower.forward`."""
        parts = vectors.chunk(len(self.members), dim=-1)
        pairs = zip(self.members, parts, strict=True)
        outputs = [member(F.normalize(part, dim=-1), mask, user_tokens, newest) for member, part in pairs]
        return torch.cat(outputs, dim=-1) / math.sqrt(len(self.members))
