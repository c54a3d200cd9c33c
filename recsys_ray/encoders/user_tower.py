"""The user tower: a causal transformer over the item vectors of a history."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from recsys_ray.encoders.config import UserTowerConfig
from recsys_ray.encoders.dropout import Dropout


class UserTower(nn.Module):
    """Histories to unit vectors, one at each position, in the space of the items.

    Blocks are pre-norm with a learned gate on each residual (Borisyuk et al. 2025, LiGR), over the causal set-up of
    SASRec (Kang and McAuley 2018). A position without an item holds a learned start vector and sees only itself: its
    output, the user's attributes aside, is the answer for somebody without a history.
    """

    def __init__(self, config: UserTowerConfig, dim: int, num_user_tokens: int) -> None:
        super().__init__()
        self.config = config
        self.scale = math.sqrt(dim)
        self.start = nn.Parameter(torch.randn(dim) / self.scale)
        self.positions = nn.Embedding(config.history, dim) if config.positions == "learned" else None
        self.attributes = nn.EmbeddingBag(num_user_tokens, dim, mode="mean", padding_idx=0)
        self.dropout = Dropout(config.rate)
        self.blocks = nn.ModuleList([Block(config, dim) for _ in range(config.blocks)])
        self.norm = nn.LayerNorm(dim)
        if self.positions is not None:
            nn.init.normal_(self.positions.weight, std=0.02)
        nn.init.normal_(self.attributes.weight, std=0.02)

    def forward(
        self,
        vectors: Float[Tensor, "B H D"],
        mask: Bool[Tensor, "B H"],
        user_tokens: Int[Tensor, "B T"] | None,
        newest: bool = False,
    ) -> Float[Tensor, "B L D"]:
        """Read right-aligned histories: the last position is the newest item, and its output the query vector.

        Args:
            vectors: Unit item vectors; whatever stands where `mask` is False is not read.
            mask: Where there is an item.
            user_tokens: Attribute tokens, 0 is padding; None when the users have none.
            newest: Only the last position is asked for: L is 1 instead of H, and the last block works on nothing else.
        """
        length = vectors.shape[1]
        vectors = vectors.to(self.start.dtype)  # an engine may hold the weights in bfloat16
        present = mask.unsqueeze(-1)
        x = torch.where(present, vectors.masked_fill(~present, 0), self.start.to(vectors.dtype)) * self.scale
        if self.positions is not None:
            from_end = torch.arange(length - 1, -1, -1, device=x.device).clamp(max=self.config.history - 1)
            x = x + self.positions(from_end).masked_fill(~present, 0)
        if user_tokens is not None:
            x = x + self.attributes(user_tokens.long()).unsqueeze(1)
        x = self.dropout(x)
        visible = visibility(mask)
        for number, block in enumerate(self.blocks, 1):
            x = block(x, visible, newest and number == len(self.blocks))
        return F.normalize(self.norm(x).float(), dim=-1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added through a gate."""

    def __init__(self, config: UserTowerConfig, dim: int) -> None:
        super().__init__()
        self.heads = config.heads
        self.rotary = config.positions == "rotary"
        self.attention_norm = nn.LayerNorm(dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.attention_out = nn.Linear(dim, dim)
        self.attention_gate = nn.Linear(dim, dim)
        self.forward_norm = nn.LayerNorm(dim)
        self.forward_in = nn.Linear(dim, config.hidden * dim)
        self.forward_out = nn.Linear(config.hidden * dim, dim)
        self.forward_gate = nn.Linear(dim, dim)
        self.dropout = Dropout(config.rate)

    def forward(
        self, x: Float[Tensor, "B H D"], visible: Bool[Tensor, "B 1 H H"], newest: bool
    ) -> Float[Tensor, "B L D"]:
        """Attend to the visible positions, then transform each one, or only the newest: L is H, or 1."""
        seen = self.attention_norm(x)
        mixed = self._attend(seen, visible, newest)
        if newest:
            x, seen = x[:, -1:], seen[:, -1:]
        x = x + self.dropout(torch.sigmoid(self.attention_gate(seen)) * mixed)
        seen = self.forward_norm(x)
        thought = self.forward_out(F.gelu(self.forward_in(seen)))
        result: Tensor = x + self.dropout(torch.sigmoid(self.forward_gate(seen)) * thought)
        return result

    def _attend(
        self, x: Float[Tensor, "B H D"], visible: Bool[Tensor, "B 1 H H"], newest: bool
    ) -> Float[Tensor, "B L D"]:
        batch, length, dim = x.shape
        split = self.query_key_value(x).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        if newest:
            query, visible = query[:, :, -1:], visible[:, :, -1:]
        if self.rotary:  # positions are counted from the end, so the last ones alone turn as they do among all
            query, key = rotate(query), rotate(key)
        heads = attention(query, key, value, visible)
        mixed: Tensor = self.attention_out(heads.transpose(1, 2).reshape(batch, 1 if newest else length, dim))
        return mixed


def attention(
    query: Float[Tensor, "B heads L d"],
    key: Float[Tensor, "B heads H d"],
    value: Float[Tensor, "B heads H d"],
    visible: Bool[Tensor, "B 1 L H"],
) -> Float[Tensor, "B heads L d"]:
    """Scaled dot-product attention over the visible positions.

    On a CPU torch's fused kernel is 1.5 to 8 times slower in bfloat16, backward included, than the three products.
    """
    if query.device.type != "cpu":
        return F.scaled_dot_product_attention(query, key, value, attn_mask=visible)
    batch, heads, asked, width = query.shape
    length = key.shape[2]
    flat = (batch * heads, length, width)
    bias = torch.zeros(visible.shape, dtype=query.dtype).masked_fill_(~visible, float("-inf"))
    bias = bias.expand(batch, heads, asked, length).reshape(batch * heads, asked, length)
    query = query.reshape(batch * heads, asked, width)
    scores = torch.baddbmm(bias, query, key.reshape(flat).transpose(1, 2), alpha=width**-0.5)
    mixed = torch.bmm(torch.softmax(scores, -1).to(value.dtype), value.reshape(flat))
    return mixed.view(batch, heads, asked, width)


def visibility(mask: Bool[Tensor, "B H"]) -> Bool[Tensor, "B 1 H H"]:
    """Each position sees itself and the items before it; padding sees itself alone, so that no row is empty."""
    place = torch.arange(mask.shape[1], device=mask.device)
    before, itself = place <= place[:, None], place == place[:, None]
    return ((before & mask[:, None, :]) | itself).unsqueeze(1)


def rotate(x: Float[Tensor, "B heads H d"]) -> Float[Tensor, "B heads H d"]:
    """Turn pairs of components by an angle that grows with the position, counted from the end (Su et al. 2021)."""
    length, dim = x.shape[-2:]
    half = dim // 2
    from_end = torch.arange(length - 1, -1, -1, device=x.device, dtype=torch.float32)
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angles = from_end[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half : 2 * half]
    turned = torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
    return torch.cat([turned, x[..., 2 * half :]], dim=-1) if dim % 2 else turned
