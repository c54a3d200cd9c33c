"""What to change where a process does not fit: settings, each with what the same plan says under it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recsys_ray.config import RunConfig
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.planning.memory import Need, Room, Sizes
from recsys_ray.planning.stage_memory import plan_memory
from recsys_ray.planning.training_memory import modalities, trained_modalities

_HALVINGS = 10


@dataclass(frozen=True)
class Remedy:
    """A change of settings and what it brings.

    Attributes:
        changes: Dotted path to the new value.
        num_bytes: What the process then needs.
        fits: Whether that is little enough.
    """

    changes: dict[str, Any]
    num_bytes: float
    fits: bool

    def __str__(self) -> str:
        return " ".join(f"--set {path}={'null' if value is None else value}" for path, value in self.changes.items())


def remedies(config: RunConfig, sizes: Sizes, need: Need, room: Room) -> list[Remedy]:
    """Changes that make a process smaller, the mildest first, up to the first that is enough of each kind."""
    found = []
    for kind in _kinds(config, sizes, need):
        for changes in kind:
            remedy = _try(config, sizes, need, room, changes)
            if remedy is not None and remedy.fits:
                found.append(remedy)
                break
        else:
            last = _try(config, sizes, need, room, kind[-1])
            if last is not None and last.num_bytes < need.num_bytes:
                found.append(last)
    return found


def _try(config: RunConfig, sizes: Sizes, need: Need, room: Room, changes: dict[str, Any]) -> Remedy | None:
    """The same process under other settings; None where those are not allowed together with the rest."""
    try:
        changed = override(config, changes)
    except ConfigError:
        return None
    place = (need.stage, need.process, need.kind)
    again = next((one for one in plan_memory(changed, sizes) if (one.stage, one.process, one.kind) == place), None)
    num_bytes = 0.0 if again is None else again.num_bytes
    fits = again is None or room.fits(again) is True
    return Remedy(changes, num_bytes, fits)


def _kinds(config: RunConfig, sizes: Sizes, need: Need) -> Iterator[list[dict[str, Any]]]:
    stage, _, name = need.stage.partition(": ")
    if stage == "train":
        yield from _for_training(config, sizes)
    elif stage == "features":
        path = f"model.{name}.batch_size"
        yield _halved(path, getattr(config.model, name).batch_size)
    elif stage == "embed":
        yield _halved("embedding.batch_size", config.embedding.batch_size)
    elif stage == "channel":
        one: Any = config.channels[name]
        if "neighbours" in type(one).model_fields:
            yield _halved(f"channels.{name}.neighbours", one.neighbours or sizes.items)
        if one.kind == "ease":
            yield [{f"channels.{name}.memory_bytes": 0}]
        yield [{f"channels.{name}": None}]
    else:
        yield [{"index.factory": "SQfp16"}, {"index.factory": "exact"}]
        tables = {
            f"channels.{other}.neighbours": 100
            for other, one in config.channels.items()
            if one is not None and "neighbours" in type(one).model_fields
        }
        if tables:
            yield [tables]


def _for_training(config: RunConfig, sizes: Sizes) -> Iterator[list[dict[str, Any]]]:
    training = config.training
    yield from _for_activations(config)
    sharded = {"training.engine": "deepspeed", "training.average": None}
    if training.workers > 1 and training.zero_stage < 3:
        yield [{**sharded, "training.zero_stage": stage} for stage in range(training.zero_stage + 1, 4)]
    if training.zero_stage and training.gpus and not training.offload:
        yield [{"training.offload": True}]
    if training.workers:
        sizes_of = [training.workers * 2**power for power in range(1, 6)]
        yield [{"training.workers": count} for count in sizes_of if count <= training.batch_size] or [{}]
    yield _halved("training.batch_size", training.batch_size, max(training.workers, 1))
    negatives = sizes.items if training.negatives == "all" else training.negatives
    yield _halved("training.negatives", negatives)
    for name, one in modalities(config).items():
        modes = ["lora", "frozen"] if one.mode == "full" else ["frozen"]
        yield [*({f"model.{name}.mode": mode} for mode in modes), {f"model.{name}": None}]


def _for_activations(config: RunConfig) -> Iterator[list[dict[str, Any]]]:
    trained = trained_modalities(config)
    for name, one in trained.items():
        if not one.checkpointing:
            yield [{f"model.{name}.checkpointing": True}]
    if trained:
        yield [{"training.items_at_once": count} for count in (1024, 512, 256, 128, 64, 32, 16)]
    if config.training.precision == "fp32":
        yield [{"training.precision": "bf16"}]


def _halved(path: str, value: int, least: int = 1) -> list[dict[str, Any]]:
    halves = [value >> power for power in range(1, _HALVINGS) if value >> power >= least]
    return [{path: half} for half in halves] or [{path: least}]
