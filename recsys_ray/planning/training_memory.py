"""Bytes of a training worker: parameters, gradients, optimizer, activations, and what stands beside them.

What ZeRO shards over N workers is as in Rajbhandari et al. 2020, "ZeRO: Memory Optimizations Toward Training Trillion
Parameter Models", arXiv:1910.02054, section 5, for weights that stay in float32 under autocast:
a parameter is 4 bytes, its gradient 4, Adam's two moments 8. So a parameter takes 16 bytes unsharded, 8 + 8/N at stage
1, 4 + 12/N at stage 2 and 16/N at stage 3. DeepSpeed in bfloat16 holds weights and gradients at 2 bytes and a float32
copy of the weights in the optimizer: the same 16 bytes, which become 4 + 12/N, 2 + 14/N and 16/N.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from recsys_ray.config import RunConfig
from recsys_ray.core.config import override
from recsys_ray.core.schema import Fields, NumericField
from recsys_ray.encoders.config import ImageConfig, TextConfig
from recsys_ray.encoders.modality import IMAGE, TEXT
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.planning.memory import Kind, Line, Need, Sizes, needs_of
from recsys_ray.planning.skeleton import Skeleton, skeleton
from recsys_ray.training.loss import CHUNK_ELEMENTS, MIN_POSITIONS
from recsys_ray.training.tables import tables_above

WEIGHT = 4  # bytes a parameter, and so below: weight, gradient, optimizer
OPTIMIZER = "optimizer"
_SINGLE, _MIXED = (4, 4, 8), (2, 2, 12)
_EVENT_BYTES = 8 + 8 + 4  # row, time, weight
_BLOCK_VALUES = 24  # numbers of D that a block of the user tower saves for a position, attention included


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has.

    Attributes:
        held: All of them.
        trained: Those that get a gradient.
        sparse: Of these, those of tables that are updated row by row: no gradient of the whole ever exists.
    """

    held: int
    trained: int
    sparse: int = 0


def modalities(config: RunConfig) -> dict[str, TextConfig | ImageConfig]:
    """The modalities of text and pictures that are configured."""
    pairs = ((TEXT, config.model.text), (IMAGE, config.model.image))
    return {name: one for name, one in pairs if one is not None}


def trained_modalities(config: RunConfig) -> dict[str, TextConfig | ImageConfig]:
    """Those whose backbone is trained with the towers."""
    return {name: one for name, one in modalities(config).items() if one.trained}


def count_parameters(config: RunConfig, sizes: Sizes) -> Parameters:
    """Parameters of the towers, and of the backbones that are trained with them."""
    model = towers(config, sizes)
    own = sum(parameter.numel() for parameter in model.parameters())
    tables = tables_above(model, config.training.sparse_above, config.training.weight_decay)
    sparse = sum(table.module.weight.numel() for table in tables.values())
    chosen = trained_modalities(config).values()
    trained = [skeleton(one) for one in chosen]
    if config.model.id is not None:
        # The content head reads features where the backbone is frozen, and D numbers where it is trained.
        dim = config.model.dim
        own += sum((dim - one.features) * dim for one in trained)
    adapters = [_adapters(one) for one in chosen]
    learning = [skeleton(one).trained if one.mode == "full" else _adapters(one) for one in chosen]
    held = own + sum(one.parameters for one in trained) + sum(adapters)
    return Parameters(held, own + sum(learning), sparse)


def _adapters(one: TextConfig | ImageConfig) -> int:
    return one.lora.rank * skeleton(one).linear_sides if one.mode == "lora" else 0


def towers(config: RunConfig, sizes: Sizes) -> TwoTower:
    """The towers on no device, as if all backbones were frozen."""
    frozen = {f"model.{name}.mode": "frozen" for name in modalities(config)}
    fields = Fields(
        tokens={str(token): token for token in range(1, sizes.tokens)},
        user_tokens={str(token): token for token in range(1, sizes.user_tokens)},
        numeric={str(place): NumericField(mean=0, std=1) for place in range(sizes.numeric)},
        vectors=dict(sizes.vectors),
    )
    dims = {name: skeleton(one).features for name, one in modalities(config).items()}
    with torch.device("meta"):
        return build(override(config, frozen).model, fields, sizes.items, dims)


def state_lines(config: RunConfig, parameters: Parameters) -> Iterator[Line]:
    """Parameters, gradients and optimizer of one worker."""
    training = config.training
    workers, stage = max(training.workers, 1), training.zero_stage
    shared = [workers if stage >= least else 1 for least in (3, 2, 1)]
    held, trained = parameters.held, parameters.trained
    dense = trained - parameters.sparse
    mixed = training.engine == "deepspeed" and training.precision != "fp32"
    weight, gradient, optimizer = _MIXED if mixed else _SINGLE
    for what, count, size, divisor in (
        ("parameters", held, weight, shared[0]),
        ("gradients", dense, gradient, shared[1]),
        (OPTIMIZER, trained, optimizer, shared[2]),
    ):
        by = f" / {divisor} workers (ZeRO-{stage})" if divisor > 1 else ""
        yield Line(what, count * size / divisor, f"{size} B x {count:,}{by}")
    if stage:
        yield Line(
            "ZeRO buckets",
            gradient * trained,
            f"{gradient} B x {trained:,}: gradients on their way, at most all at once",
        )
    elif workers > 1:
        yield Line("gradient sum", 4 * dense, f"4 B x {dense:,}: one flat buffer")
    if training.averaging is not None:
        yield Line("average of weights", 4 * held, f"4 B x {held:,}, training.average")
    if training.precision != "fp32" and not mixed:
        yield Line("bf16 weights", 2 * trained, f"2 B x {trained:,}: autocast keeps what it rounded through a step")


def items_a_step(config: RunConfig, sizes: Sizes) -> tuple[int, str]:
    """Distinct items that one worker encodes in a step at most, and why."""
    training, workers = config.training, max(config.training.workers, 1)
    sequences = -(-training.batch_size // workers)
    history = min(training.max_history or config.model.user.history, sizes.events)
    negatives = sizes.items if training.negatives == "all" else min(training.negatives, sizes.items)
    drawn = sequences * history + -(-negatives // workers)
    why = f"{sequences} sequences x {history} events + {negatives} negatives / {workers}, at most {sizes.items:,} items"
    return min(drawn, sizes.items), why


def activation_lines(config: RunConfig, sizes: Sizes) -> Iterator[Line]:
    """What the forward pass leaves for the backward pass."""
    training, dim = config.training, config.model.dim
    items, why = items_a_step(config, sizes)
    half = 2 if training.precision == "fp32" else 1  # saved bytes are counted in bfloat16; about double in float32
    for name, one in trained_modalities(config).items():
        at_once = min(items, training.items_at_once or items)
        yield Line(f"{name} activations", *_activations(skeleton(one), at_once, half, one.checkpointing))
    workers = max(training.workers, 1)
    positions = -(-training.batch_size // workers) * min(
        training.max_history or config.model.user.history, sizes.events
    )
    members, blocks = len(config.model.members), config.model.user.blocks
    values = positions * dim * members
    tower = values * blocks * _BLOCK_VALUES * 2 * half
    yield Line(
        "user tower", tower, f"{positions:,} positions x {dim} x {blocks} blocks x {_BLOCK_VALUES} x {2 * half} B"
    )
    negatives = sizes.items if training.negatives == "all" else min(training.negatives, sizes.items)
    logits = max(CHUNK_ELEMENTS, MIN_POSITIONS * negatives)
    loss = 6 * 4 * values + 3 * 4 * negatives * dim * members + 3 * 4 * logits
    yield Line(
        "loss", loss, f"vectors and gradients of {positions:,} positions and {negatives:,} negatives, {logits:,} logits"
    )
    yield Line("item vectors", 6 * 4 * items * dim * members, f"{items:,} items ({why}) x {dim} x 6 x 4 B")


def _activations(one: Skeleton, items: int, factor: int, checkpointing: bool) -> tuple[float, str]:
    # With checkpoints: what enters each layer, and all of the one layer that is made again.
    each = factor * (one.kept_bytes + one.layer_bytes if checkpointing else one.saved_bytes)
    return items * each, f"{items:,} items x {each / 1e6:.1f} MB (counted on the architecture, no weights loaded)"


def item_bytes(config: RunConfig, sizes: Sizes) -> tuple[int, str]:
    """Bytes of one item's inputs in memory: what a training worker holds of the whole catalogue."""
    parts = {}
    for name, one in modalities(config).items():
        shape = skeleton(one)
        parts[name] = shape.input_bytes if one.trained else 4 * shape.features
    parts |= {name: 4 * length for name, length in sizes.vectors}
    parts["id, attributes"] = 8 + 4 * sizes.numeric + (64 if sizes.tokens > 1 else 0)
    return sum(parts.values()), " + ".join(f"{count:,} {name}" for name, count in parts.items())


def train_needs(config: RunConfig, sizes: Sizes) -> list[Need]:
    """A training worker, on the host and on its GPU."""
    parameters = count_parameters(config, sizes)
    on: Kind = "gpu" if config.training.gpus else "host"
    each, why = item_bytes(config, sizes)
    step, _ = items_a_step(config, sizes)
    lines: list[tuple[Kind, Line]] = [
        *((_place(line, config, on), line) for line in state_lines(config, parameters)),
        *((on, line) for line in activation_lines(config, sizes)),
        (on, Line("step's items", step * each, f"{step:,} items x {each:,} B")),
        ("host", Line("item inputs", sizes.items * each, f"{sizes.items:,} items x ({why}) B")),
        ("host", Line("events", 2 * _EVENT_BYTES * sizes.events, f"2 x {_EVENT_BYTES} B x {sizes.events:,}")),
    ]
    if on == "gpu":
        lines.append(
            ("host", Line("weights on the way", 2 * WEIGHT * parameters.held, "read, and given back: 2 x 4 B"))
        )
    return needs_of("train", "worker", lines)


def _place(line: Line, config: RunConfig, on: Kind) -> Kind:
    return "host" if line.what == OPTIMIZER and config.training.offload else on
