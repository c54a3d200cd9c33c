"""One training step, in plain torch: forward, gather, loss, backward, update."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from recsys_ray.core.errors import TrainingError
from recsys_ray.training.alignment import alignment_loss
from recsys_ray.training.batches import StepBatch
from recsys_ray.training.engine import Engine
from recsys_ray.training.loss import Negatives, sampled_softmax
from recsys_ray.training.negatives import gather_with_gradient


def train_step(engine: Engine, batch: StepBatch, temperature: float, step: int, learning_rate: float) -> float:
    """Train on one global batch, of which every rank holds a share.

    Args:
        engine: Model and optimizer.
        batch: This rank's share.
        temperature: Cosines are divided by it.
        step: Counted from 0 over the whole run; for the error's text.
        learning_rate: Of this step.

    Returns:
        The mean loss over the supervised positions of all ranks, and the weighted one over the aligned items.

    Raises:
        TrainingError: On every rank, before the update, when the loss is not finite.
    """
    batch = batch.to(engine.device).looked_at()
    with engine.precision():
        loss = local_loss(engine, batch, temperature)
    whole = global_sum(loss.detach())
    if not torch.isfinite(whole):
        raise TrainingError(
            f"the loss of step {step} is {float(whole)}: training stopped before the update, the last checkpoint "
            f"stands. Lower training.learning_rate ({learning_rate:g} here), or train in fp32."
        )
    engine.backward(loss)
    engine.step(learning_rate)
    return float(whole)


def local_loss(engine: Engine, batch: StepBatch, temperature: float) -> Float[Tensor, ""]:
    """This rank's part of the loss: over all ranks they add up to the mean over the global batch's positions.

    The content heads' distance from the negatives is added to it, and the alignment of the pairs by its weight.
    """
    queries, targets, negatives, aligned, missed = engine.model(batch.inputs)
    gathered = gather_with_gradient(negatives, len(batch.negative_rows))
    # Members learn apart. Their parts of unit vectors are shorter by the root of M, so a dot product by M.
    members = queries.shape[1]
    vectors = [tuple(one[:, member] for one in (queries, targets, gathered)) for member in range(members)]
    losses = [_softmax(batch, member, temperature / members) for member in vectors]
    for length in batch.prefixes:
        cut = tuple(F.normalize(one[:, :length].float(), dim=-1) for one in vectors[0])
        losses.append(_softmax(batch, cut, temperature))
    ranking = torch.stack(losses).sum() / (1 + len(batch.prefixes))
    total: Tensor = ranking / batch.num_positions + missed.sum() / len(batch.negative_rows)
    if not batch.pairs.count:
        return total
    return total + batch.pairs.weight * alignment_loss(aligned, batch.pairs, temperature)


def _softmax(batch: StepBatch, vectors: tuple[Tensor, ...], temperature: float) -> Float[Tensor, ""]:
    """The loss of queries, their targets and the negatives of all ranks."""
    queries, targets, negatives = vectors
    shared = Negatives(negatives, batch.negative_rows, batch.log_expected, batch.own, batch.own_weight)
    return sampled_softmax(queries, targets, batch.target_rows, shared, (temperature, batch.weights))


def global_sum(value: Tensor) -> Tensor:
    """Sum a tensor over all ranks."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value
