"""How towers come into a worker: an outline of them, and a file from which one parameter is read at a time."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from recsys_ray.encoders.two_tower import TwoTower

Place = Callable[[nn.Parameter], None]
"""Takes a parameter that has just been read, before the next one is: what it does not keep is let go."""

_WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class Handover:
    """Towers on their way into workers, to be pickled.

    Attributes:
        outline: The model as it is, tokenizers and buffers included, but with its parameters on no device.
        weights: File with the parameters by their names, on storage that all workers share.
    """

    outline: TwoTower
    weights: Path


def hand_over(model: TwoTower, directory: Path) -> Handover:
    """Write the parameters into an existing directory, and outline the rest."""
    from safetensors.torch import save_file

    weights = {name: parameter.detach().cpu().contiguous() for name, parameter in model.named_parameters()}
    save_file(weights, directory / _WEIGHTS)
    # A parameter that deepcopy takes for copied already is not copied: the outline costs what its buffers do.
    outlined = {id(parameter): _outlined(parameter) for parameter in model.parameters()}
    return Handover(copy.deepcopy(model, dict(outlined)), directory / _WEIGHTS)


def take(handed: Handover, place: Place) -> TwoTower:
    """The towers. Their parameters are read, and given to `place` on the CPU, one after the other."""
    model = copy.deepcopy(handed.outline)
    outlined = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in outlined.items()}
    placed: dict[str, nn.Parameter] = {}
    for module in model.modules():
        for attribute, parameter in list(module.named_parameters(recurse=False)):
            name = names[id(parameter)]
            if name not in placed:  # else two modules share it
                placed[name] = _read(handed.weights, name, parameter)
                place(placed[name])
            setattr(module, attribute, placed[name])
    return model


def _outlined(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _read(path: Path, name: str, like: nn.Parameter) -> nn.Parameter:
    """A parameter in memory of its own, laid out as the outline says (convolutions keep theirs channels last)."""
    # Opened for each one anew: pages of an open file that were read count as the process's own.
    with safe_open(path, framework="pt") as file:
        values: Tensor = file.get_tensor(name)
        return nn.Parameter(torch.empty_like(like, device="cpu").copy_(values), requires_grad=like.requires_grad)
