"""ZeRO checkpoints for another number of workers: DeepSpeed's universal format, a folder a parameter, whole."""

import io
import shutil
from argparse import Namespace
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from recsys_ray.core.artifacts import fsync


def num_shards(checkpoint: Path) -> int:
    """How many workers' shards a DeepSpeed checkpoint has."""
    return len(list(checkpoint.glob("*zero_pp_rank_*_optim_states.pt")))


def convert(checkpoint: Path, to: Path) -> None:
    """Put the shards of a checkpoint together, each parameter and its optimizer's state in files of their own.

    One process does it, with one parameter in memory at a time beside one worker's shards; a kill leaves no half of it
    under the name. It stays beside the checkpoint, so that it is done once.

    Args:
        checkpoint: DeepSpeed's, of ZeRO stage 1, 2 or 3.
        to: Where to, on the same storage.
    """
    from deepspeed.checkpoint import ds_to_universal

    if to.is_dir():
        return
    aside = to.with_name(f"{to.name}.aside")
    shutil.rmtree(aside, ignore_errors=True)
    arguments = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
    where = {"input_folder": str(checkpoint), "output_folder": str(aside), "inject_missing_state": True}
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints its steps and bars
        ds_to_universal.main(Namespace(**arguments, **where))
    for path in (*aside.rglob("*"), aside):
        fsync(path)
    aside.rename(to)
    (to.parent / "latest_universal").unlink()  # names the folder that has just been renamed
    fsync(to.parent)


def restore_buffers(checkpoint: Path, module: nn.Module) -> None:
    """Put back the buffers, such as the statistics of batch norms: the universal format leaves them out."""
    states = min(checkpoint.glob("*model_states.pt"))  # the ranks' own are not told apart
    # Pickled objects of DeepSpeed stand beside the weights; `load_checkpoint` has just unpickled the same file.
    state = torch.load(states, map_location="cpu", weights_only=False, mmap=True)["module"]
    for name, buffer in module.named_buffers():
        if name in state:
            buffer.copy_(state[name])


class Untangled:
    """Mends what DeepSpeed 0.19 does to an optimizer when it loads the universal format at stage 3.

    It gives all groups of parameters the settings of the first (and so decays biases), and one and the same counter of
    steps (which then runs as many times too fast as there are groups).

    Args:
        optimizer: The torch optimizer, before the checkpoint is loaded.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._settings = [_settings(group) for group in optimizer.param_groups]

    def mend(self) -> None:
        """Call it after the checkpoint is loaded."""
        for group, settings in zip(self._optimizer.param_groups, self._settings, strict=True):
            group |= settings
        for state in self._optimizer.state.values():
            if isinstance(state.get("step"), Tensor):
                state["step"] = state["step"].clone()


def _settings(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}
