"""Hard negatives: what the towers, as they stand after an epoch, rank first for each user and should not."""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from recsys_ray.core.arrays import IntArray
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.negatives import Draw, gather_with_gradient
from recsys_ray.training.validation import block_size

_SPARE = 4
"""So many times the wanted items are looked at, so that enough are left without those that are too near."""


def with_certain(draw: Draw, rows: IntArray) -> Draw:
    r"""The drawn negatives, and with them some that are there for certain.

    Certain items stand for themselves, and what is drawn estimates the sum over all others: a stratum that is taken
    whole beside one that is sampled (Cochran 1977, "Sampling Techniques", 5.1). So drawn items that are certain are
    left out, a certain one has :math:`\log E = 0`, the others keep theirs, and the partition function is estimated
    without bias as before, with less variance the more of it the certain items hold.

    Args:
        draw: The draw of the step.
        rows: (h,) distinct rows.
    """
    drawn = ~np.isin(draw.rows, rows)
    log_expected = np.concatenate([draw.log_expected[drawn], np.zeros(len(rows), np.float32)])
    return Draw(np.concatenate([draw.rows[drawn], rows]), log_expected)


def add_mined(draw: Draw, mined: Int[Tensor, "U m"], users: IntArray) -> Draw:
    """The negatives of a step, and among them what was mined for its users; the same on every rank.

    Args:
        draw: The draw of the step.
        mined: By user, see `mine`; empty before the first epoch is done.
        users: (W,) user rows of the step's sequences.
    """
    if not len(mined):
        return draw
    rows = np.unique(mined[torch.from_numpy(users)].numpy())
    return with_certain(draw, rows[rows >= 0].astype(np.int64))


def each(config: TrainingConfig) -> int:
    """Items mined for a user, so that all sequences of a step have `hard_negatives` at most."""
    return config.hard_negatives // config.batch_size


@torch.no_grad()
def mine(
    model: TwoTower,
    items: Float[Tensor, "N D"],
    data: TrainInput,
    config: TrainingConfig,
    place: tuple[int, int],
) -> Int[Tensor, "U m"]:
    """The items that users would be shown and have not chosen, by the towers as they stand.

    A user's own items are never among them, nor items that nobody has chosen, nor those whose cosine to one of the
    user's latest items, as many as the user tower reads, is above `hard_margin`: another edition of what was chosen is
    no error.

    Args:
        model: In evaluation mode.
        items: The vectors of the catalogue by it.
        data: Events.
        config: How many, and the margin.
        place: (rank, world size); each rank asks for a slice of the users, and all get all.

    Returns:
        Item rows by user, -1 where there are fewer.
    """
    rank, world_size = place
    users = len(data.train.histories)
    size = -(-users // world_size)
    asked = np.minimum(np.arange(rank * size, (rank + 1) * size), users - 1)
    unseen = torch.from_numpy(data.train.item_counts() == 0).to(items.device)
    blocks = np.array_split(asked, -(-len(asked) // block_size(len(items), model.config.user.history)))
    mined = torch.cat([_of(model, items, data, config, (block, unseen)) for block in blocks])
    # Collectives of whole numbers would do too; this one is there, and fp64 holds every row.
    gathered = gather_with_gradient(mined.double(), world_size * size)
    return gathered[:users].int().cpu()


def _of(
    model: TwoTower,
    items: Float[Tensor, "N D"],
    data: TrainInput,
    config: TrainingConfig,
    asked: tuple[IntArray, Tensor],
) -> Int[Tensor, "B m"]:
    users, unseen = asked
    own = data.train.histories.take(users)
    history = torch.from_numpy(own.padded(model.config.user.history)).to(items.device)
    latest, known = items[history.clamp(min=0)], history >= 0
    tokens = data.tokens_of(users)
    outputs = model.user_tower(latest, known, None if tokens is None else tokens.to(items.device), newest=True)
    scores = outputs[:, -1].float() @ items.T
    scores[:, unseen] = -torch.inf
    scores[torch.from_numpy(own.row_of_value), torch.from_numpy(own.values)] = -torch.inf
    wanted = each(config)
    best, rows = scores.topk(min(_SPARE * wanted, scores.shape[1]), dim=1)
    near = F.normalize(items[rows], dim=-1) @ F.normalize(latest, dim=-1).transpose(1, 2)
    near = near.masked_fill(~known[:, None], -torch.inf).amax(2)
    best = best.masked_fill(near > config.hard_margin, -torch.inf)
    kept, order = best.topk(min(wanted, best.shape[1]), dim=1)
    found = rows.gather(1, order).masked_fill(kept == -torch.inf, -1).int()
    return F.pad(found, (0, wanted - found.shape[1]), value=-1)
