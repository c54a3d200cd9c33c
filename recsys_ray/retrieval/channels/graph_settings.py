"""Settings of the graph embedding channel, in a file that needs no torch."""

from typing import Literal

from pydantic import Field

from recsys_ray.retrieval.channels.folded import FoldedConfig
from recsys_ray.retrieval.channels.settings import Search


class GraphEmbeddingConfig(FoldedConfig):
    """LightGCN.

    Attributes:
        kind: Which channel this is.
        dim: Length of the vectors.
        hops: How often the items' vectors pass over the users that met them: LightGCN of 2 hops + 1 layers.
        temperature: Cosines are divided by it in the loss; a small one looks at the hardest items.
        targets: Share of a user's items that training asks for; the others stand for the user.
        negatives: Items that the targets of a batch stand against, drawn uniformly; all, where there are no more. A
            step holds about 16 bytes for each of them and each user of the batch.
        batch_users: Users of a step.
        learning_rate: Of Adam.
        epochs: Passes over the users; null stops by validation, and without one after `max_epochs`.
        max_epochs: The most that null takes.
        patience: Training stops when validation has found nothing better for so many epochs.
        seed: Of the first vectors and of all draws.
    """

    kind: Literal["graph_embedding"] = "graph_embedding"
    dim: int = Field(64, ge=1, le=4096)
    hops: int = Field(1, ge=0, le=10)
    temperature: float = Field(0.1, ge=0.03, le=10)
    targets: float = Field(0.5, gt=0, lt=1)
    negatives: int = Field(4096, ge=1)
    batch_users: int = Field(1024, ge=1)
    learning_rate: float = Field(0.02, gt=0)
    epochs: int | None = Field(None, ge=1)
    max_epochs: int = Field(40, ge=1)
    patience: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    search: Search = Field(default_factory=lambda: {"decay": (0.6, 0.7, 0.8, 0.9, 1.0)})
