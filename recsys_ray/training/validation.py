"""Full ranking of the catalogue for held-out events, as a training run looks at it after each epoch."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from recsys_ray.core import metrics
from recsys_ray.core.arrays import FloatArray
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.data import TrainInput, Validation
from recsys_ray.training.negatives import gather_with_gradient
from recsys_ray.training.step import global_sum

SHOWN = ("ndcg@10", "recall@10", "recall@100")
_BLOCK_ITEMS = 4096
_BLOCK_SCORES = 1 << 22
_BLOCK_POSITIONS = 1 << 14


@torch.no_grad()
def validate(
    model: TwoTower, items: Float[Tensor, "N D"], data: TrainInput, queries: Validation, place: tuple[int, int]
) -> dict[str, float]:
    """Mean metrics over all queries, each rank ranking for its share of them; the same on every rank.

    Args:
        model: With the weights to judge, on the device.
        items: The vectors of the catalogue by it.
        data: Catalogue and user attributes.
        queries: Whose next items are known.
        place: (rank, world size).
    """
    rank, world_size = place
    # Histories of a length stand together: a block is as wide as its longest.
    mine = queries.take(np.argsort(queries.history.lengths, kind="stable")[rank::world_size])
    sums = torch.zeros(len(SHOWN), dtype=torch.float64)
    longest = min(model.config.user.history, int(queries.history.lengths.max(initial=1)))
    size = block_size(data.train.num_items, longest)
    # As many blocks on every rank, if need be an empty one: sharded weights come together when all ask for them.
    for start in range(0, -(-len(queries) // world_size), size):
        block = mine.take(np.arange(min(start, len(mine)), min(start + size, len(mine))))
        sums += _metric_sums(block, query_vectors(model, items, data, block) @ items.T)
    total = global_sum(sums.to(items.device)).cpu() / max(1, len(queries))
    return dict(zip(SHOWN, total.tolist(), strict=True))


@torch.no_grad()
def item_vectors(model: TwoTower, data: TrainInput, device: torch.device, place: tuple[int, int]) -> Tensor:
    """(N, D) vectors of the whole catalogue; each rank makes a slice, and all get all."""
    count, (rank, world_size) = len(data.inputs), place
    size = -(-count // world_size)
    # The last slices are filled up with the last item, so that all ranks run the same blocks.
    rows = torch.arange(rank * size, (rank + 1) * size).clamp(max=count - 1)
    blocks = [model.item_tower(data.inputs.take(block).to(device)) for block in torch.split(rows, items_at_once(model))]
    mine = torch.cat(blocks).float()
    return gather_with_gradient(mine, world_size * size)[:count]


def items_at_once(model: TwoTower) -> int:
    """Items encoded together; a backbone inside the model holds far more for each than a projection of features."""
    configs = (model.config.text, model.config.image)
    trained = [config.batch_size for config in configs if config is not None and config.trained]
    return min([_BLOCK_ITEMS, *trained])


def query_vectors(model: TwoTower, items: Tensor, data: TrainInput, queries: Validation) -> Tensor:
    """(B, D) vectors of the queries' histories."""
    longest = int(queries.history.lengths.max(initial=1))
    history = torch.from_numpy(queries.history.padded(min(model.config.user.history, max(1, longest))))
    history = history.to(items.device)
    tokens = data.tokens_of(queries.users)
    tokens = None if tokens is None else tokens.to(items.device)
    vectors: Tensor = model.user_tower(items[history.clamp(min=0)], history >= 0, tokens, newest=True)
    return vectors[:, -1].float()


def block_size(num_items: int, longest: int) -> int:
    """Queries at a time, so that neither their scores nor their histories fill the memory."""
    return max(1, min(_BLOCK_SCORES // num_items, _BLOCK_POSITIONS // max(1, longest)))


def subsample(queries: Validation, limit: int, seed: int) -> Validation:
    """At most `limit` queries, the same ones for the same seed."""
    if len(queries) <= limit:
        return queries
    return queries.take(np.sort(np.random.default_rng(seed).choice(len(queries), limit, replace=False)))


def _metric_sums(queries: Validation, scores: Tensor) -> Tensor:
    """(M,) sums over the queries of each metric in `SHOWN`."""
    matrix: FloatArray = scores.cpu().numpy()
    matrix[queries.exclude.row_of_value, queries.exclude.values] = -np.inf
    of_target = queries.items.row_of_value
    # One target a query is the rule; then the rows need no copy.
    rows = matrix if len(of_target) == len(matrix) else matrix[of_target]
    ranks = metrics.mean_ranks(rows, queries.items.values)
    values = [metrics.METRICS[name](ranks, of_target, len(queries)).sum() for name in SHOWN]
    return torch.tensor(values, dtype=torch.float64)
