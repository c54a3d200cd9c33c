"""What a training run reads, in memory and as files that workers open by path."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.errors import DataError
from recsys_ray.core.events import Events
from recsys_ray.encoders.inputs import ItemInputs

_TENSORS = "items.safetensors"
_ARRAYS = "arrays.npz"
_WORDS = "words"  # among the tensors
_SHAPE = "shape.json"
_EVENTS = ("offsets", "items", "timestamps", "weights")


@dataclass(frozen=True)
class Validation:
    """Q queries whose next items are known but not trained on.

    Attributes:
        users: (Q,) user rows.
        history: (Q) item rows, oldest first.
        exclude: (Q) item rows left out of the ranking.
        items: (Q) target item rows, at least one each.
    """

    users: IntArray
    history: Ragged
    exclude: Ragged
    items: Ragged

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: IntArray) -> "Validation":
        """Some of the queries."""
        return Validation(self.users[rows], self.history.take(rows), self.exclude.take(rows), self.items.take(rows))


@dataclass(frozen=True)
class TrainInput:
    """All data of a training run.

    Attributes:
        inputs: The whole catalogue, N items, on the CPU.
        train: The events to learn from; all of them count for popularity and logQ.
        validation: None when there is nothing to hold out, as in the fit on all events.
        user_tokens: (U, T) attribute tokens of the users, or None.
        shown: (E) item rows that were shown before each event of `train`, see `training.exposed`; None where they are
            not learned from.
        words: (2, N, L) the word and the line of each token of the texts; None where texts are not augmented.
    """

    inputs: ItemInputs
    train: Events
    validation: Validation | None = None
    user_tokens: IntArray | None = None
    shown: Ragged | None = None
    words: Tensor | None = None

    def __post_init__(self) -> None:
        if len(self.inputs) != self.train.num_items:
            raise DataError(f"the catalogue has {len(self.inputs)} items, the events count {self.train.num_items}")
        if not len(self.train):
            raise DataError("there is no event to train on")

    def tokens_of(self, users: IntArray) -> Tensor | None:
        """(B, T) attribute tokens of some users, None when users have none."""
        if self.user_tokens is None or not self.user_tokens.shape[1]:
            return None
        return torch.from_numpy(self.user_tokens[users])


def save_input(directory: Path, data: TrainInput) -> None:
    """Write the data into an existing directory."""
    from safetensors.torch import save_file

    tensors = {f"present/{name}": mask for name, mask in data.inputs.present.items()}
    names: list[list[str]] = []
    for name, inner in data.inputs.values.items():
        for key, tensor in inner.items():
            tensors[f"values/{len(names)}"] = tensor.contiguous()
            names.append([name, key])
    if data.words is not None:
        tensors[_WORDS] = data.words
    save_file(tensors, directory / _TENSORS)
    arrays = {f"train_{key}": getattr(data.train, key) for key in _EVENTS}
    if data.user_tokens is not None:
        arrays["user_tokens"] = data.user_tokens
    if data.shown is not None:
        arrays["shown_values"], arrays["shown_offsets"] = data.shown.values, data.shown.offsets
    if data.validation is not None:
        arrays["validation_users"] = data.validation.users
        for key in ("history", "exclude", "items"):
            ragged = getattr(data.validation, key)
            arrays[f"validation_{key}_values"], arrays[f"validation_{key}_offsets"] = ragged.values, ragged.offsets
    np.savez(directory / _ARRAYS, **arrays)
    (directory / _SHAPE).write_text(json.dumps({"values": names, "num_items": data.train.num_items}))


def load_input(directory: Path) -> TrainInput:
    """Read what `save_input` wrote."""
    from safetensors.torch import load_file

    shape = json.loads((directory / _SHAPE).read_text())
    tensors = load_file(directory / _TENSORS)
    present = {key.removeprefix("present/"): mask for key, mask in tensors.items() if key.startswith("present/")}
    values: dict[str, dict[str, Tensor]] = {}
    for position, (name, key) in enumerate(shape["values"]):
        values.setdefault(name, {})[key] = tensors[f"values/{position}"]
    with np.load(directory / _ARRAYS) as arrays:
        offsets, items, timestamps, weights = (arrays[f"train_{key}"] for key in _EVENTS)
        train = Events(offsets, items, timestamps, weights, shape["num_items"])
        user_tokens = arrays.get("user_tokens")
        shown = Ragged(arrays["shown_values"], arrays["shown_offsets"]) if "shown_values" in arrays else None
        inputs, words = ItemInputs(values, present), tensors.get(_WORDS)
        return TrainInput(inputs, train, _load_validation(arrays), user_tokens, shown, words)


def _load_validation(arrays: np.lib.npyio.NpzFile) -> Validation | None:
    if "validation_users" not in arrays:
        return None
    raggeds = [
        Ragged(arrays[f"validation_{key}_values"], arrays[f"validation_{key}_offsets"])
        for key in ("history", "exclude", "items")
    ]
    return Validation(arrays["validation_users"], *raggeds)
