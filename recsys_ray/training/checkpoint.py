"""Checkpoints of a run: engine, random number generators of all ranks, progress, and the best weights so far."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError

from recsys_ray.core.errors import ArtifactError, TrainingError
from recsys_ray.training.engine import Engine
from recsys_ray.training.progress import Progress, TrainResult
from recsys_ray.training.step import global_sum

_PROGRESS = "progress.json"
_WEIGHTS = "weights.safetensors"
_MINED = "mined.safetensors"


def save_checkpoint(directory: Path, engine: Engine, progress: Progress, place: tuple[int, int]) -> None:
    """Write this rank's part into an existing directory; the parts of all ranks together are the checkpoint.

    Raises:
        TrainingError: On every rank, when one of them could not write.
    """
    try:
        _write(directory, engine, progress, place)
        problem = ""
    # torch's writer and that of safetensors raise errors of their own where a disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        problem = str(error)
    if float(global_sum(torch.tensor(float(bool(problem)), device=engine.device))):
        raise TrainingError(
            f"the checkpoint of step {progress.step} could not be written to {directory}"
            f"{f': {problem}' if problem else ' by another worker'}. The last whole checkpoint stands: make room, then "
            "run the same command again, and it goes on from there."
        )


def _write(directory: Path, engine: Engine, progress: Progress, place: tuple[int, int]) -> None:
    from safetensors.torch import save_file

    rank, world_size = place
    engine.save(directory)
    torch.save(_generators(), directory / f"rng_{rank}.pt")
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in progress.weights.items()}, directory / _WEIGHTS)
        save_file({"rows": progress.mined}, directory / _MINED)
        (directory / _PROGRESS).write_text(json.dumps({**progress.to_json(), "world_size": world_size}, indent=1))


def load_checkpoint(directory: Path, engine: Engine, place: tuple[int, int], seed: int) -> Progress:
    """Put engine and generators back to where they were, and return how far the run had come.

    With another number of workers the weights and the order of the data stay what they were; what is drawn for dropout
    is new.

    Args:
        directory: The parts of all ranks.
        engine: As it was built for the run.
        place: (rank, world size).
        seed: The run's.

    Raises:
        ArtifactError: When the checkpoint is not whole, or was written by another number of workers and the engine is
            not elastic.
    """
    rank, world_size = place
    written = _read(directory)
    same = written["world_size"] == world_size
    if not same and not engine.elastic:
        raise ArtifactError(
            f"{directory} was written by {written['world_size']} workers, now there are {world_size}: go on with as "
            "many as before, since each holds a shard, set training.universal_checkpoints where the engine shards, or "
            "start anew under another name"
        )
    engine.load(directory)
    progress = _progress(directory, written, with_weights=rank == 0)
    if same:
        _set_generators(torch.load(directory / f"rng_{rank}.pt", weights_only=True))
    else:
        seed_rank(seed + progress.step, rank)
    return progress


def seed_rank(seed: int, rank: int) -> None:
    """Seed a rank's generators, each differently: ranks drop out differently."""
    torch.manual_seed(seed + 7919 * rank)


def read_result(directory: Path) -> TrainResult:
    """The result in a run's last checkpoint, without an engine."""
    return TrainResult.of(_progress(directory, _read(directory), with_weights=True))


def _progress(directory: Path, written: dict[str, object], with_weights: bool) -> Progress:
    from safetensors.torch import load_file

    weights = load_file(directory / _WEIGHTS) if with_weights else {}
    return Progress.from_json(written, weights, load_file(directory / _MINED)["rows"])


def _read(directory: Path) -> dict[str, object]:
    try:
        written: dict[str, object] = json.loads((directory / _PROGRESS).read_text())
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory} is no whole training checkpoint: {error}") from None
    return written


def _generators() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_generators(states: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
