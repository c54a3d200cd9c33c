"""Item inputs as one file, of which any range of rows is read alone: how they reach the actors of a cluster."""

from pathlib import Path

from recsys_ray.encoders.inputs import ItemInputs, ModalityInputs

_SEPARATOR = "\x1f"
_PRESENT = "present"


def write_inputs(path: Path, inputs: ItemInputs) -> None:
    """Write all rows."""
    from safetensors.torch import save_file

    tensors = {f"{_PRESENT}{_SEPARATOR}{name}": mask for name, mask in inputs.present.items()}
    for name, values in inputs.values.items():
        tensors |= {f"{name}{_SEPARATOR}{key}": tensor for key, tensor in values.items()}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)


def read_rows(path: Path, start: int, stop: int) -> ItemInputs:
    """Read the rows start … stop - 1."""
    from safetensors import safe_open

    values: dict[str, ModalityInputs] = {}
    present = {}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118 (no mapping)
            first, second = key.split(_SEPARATOR)
            rows = file.get_slice(key)[start:stop]
            if first == _PRESENT:
                present[second] = rows
            else:
                values.setdefault(first, {})[second] = rows
    return ItemInputs(values, present)
