"""Named runs as functions, each deriving from another. A run is a preset, then a file, then `--set`."""

from collections.abc import Callable, Iterable
from pathlib import Path

from recsys_ray.config import RunConfig, load_config
from recsys_ray.core.config import override, parse_assignments
from recsys_ray.core.errors import ConfigError


def cpu() -> RunConfig:
    """A laptop or a small server: two training workers on CPUs, packaged backbones, frozen."""
    return RunConfig()


def tiny() -> RunConfig:
    """Minutes become seconds: one short in-process training, for tests and a first look at one's own files."""
    return override(
        cpu(),
        {
            "model.dim": 32,
            "model.image": None,
            "training.workers": 0,
            "training.epochs": 2,
            "training.negatives": 64,
            "evaluation.bootstrap_samples": 100,
        },
    )


def demo() -> RunConfig:
    """MovieLens-100K within the time of a coffee: `make demo`.

    Its towers are trained in the process of the run: 943 users keep two workers on two cores less busy than starting
    them and waiting for each other does.
    """
    return override(
        cpu(),
        {
            "name": "MovieLens-100K",
            "data.format": "recbole",
            "data.columns": {"title": "movie_title"},
            "split.protocol": "leave_one_out",
            "model.dim": 64,
            "model.image": None,
            "training.workers": 0,
            "training.batch_size": 32,
            "training.epochs": 15,
        },
    )


def gpu_small() -> RunConfig:
    """One node with a GPU of 24 GB or a few: text and image encoders are trained with the towers.

    Gradient caching bounds what a step holds: see `recsys-ray plan --preset gpu_small`.
    """
    return override(
        cpu(),
        {
            "model.text.mode": "full",
            "model.text.max_tokens": 64,
            "model.image.mode": "full",
            "training.items_at_once": 128,
            "training.workers": 1,
            "training.gpus": 1,
            "training.cpus": 4,
            "training.precision": "bf16",
            "training.batch_size": 128,
            "training.max_history": 50,
            "training.negatives": 2048,
            "training.learning_rate": 3e-4,
            "training.warmup": 0.05,
            "embedding.actors": 1,
            "embedding.gpus": 1,
            "embedding.batch_size": 256,
        },
    )


def gpu_large() -> RunConfig:
    """Several nodes, 16 GPUs of 80 GB: large text and image encoders, sharded by ZeRO-3, activations checkpointed.

    Each worker does in a step what that of `gpu_small` does. Name the encoders: the packaged one for pictures, which
    knows no checkpoints, is trained without.
    """
    small = gpu_small()
    workers = 16
    return override(
        small,
        {
            "model.text.checkpointing": True,
            "training.engine": "deepspeed",
            "training.zero_stage": 3,
            "training.workers": workers,
            "training.batch_size": workers * small.training.batch_size,
            "training.negatives": workers * 2048,
            "embedding.actors": workers,
        },
    )


PRESETS: dict[str, Callable[[], RunConfig]] = {
    "cpu": cpu,
    "tiny": tiny,
    "demo": demo,
    "gpu_small": gpu_small,
    "gpu_large": gpu_large,
}


def load_preset(name: str, file: Path | None, assignments: Iterable[str], storage: Path | None = None) -> RunConfig:
    """A preset, under the settings of a YAML file, under dotted assignments.

    Args:
        name: A key of `PRESETS`.
        file: YAML as `recsys-ray config` prints it, whole or in part; None for none.
        assignments: "dotted.path=value".
        storage: Replaces the `storage` setting when given.

    Raises:
        ConfigError: When the preset does not exist or a setting is wrong.
    """
    if name not in PRESETS:
        raise ConfigError("preset", name, ", ".join(PRESETS))
    config = PRESETS[name]()
    if file is not None:
        config = load_config(file, config)
    config = override(config, parse_assignments(assignments))
    return config if storage is None else override(config, {"storage": str(storage)})
