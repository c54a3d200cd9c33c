"""Where a backbone's files are, how they hash, and how a release gets them: what text and image backbones share."""

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recsys_ray.core.artifacts import link_or_copy
from recsys_ray.core.errors import ConfigError, MissingExtraError
from recsys_ray.encoders.config import Precision
from recsys_ray.encoders.precision import uses_bf16

PACKAGE_PREFIX = "package:"
BACKBONE_FILE = "backbone.json"  # what a saved backbone knows beyond its checkpoint: pooling, precision, architecture
# Below so many pieces the rounding of all weights to bf16 costs more than it saves.
BF16_FROM = 8
_LINKED = ("*.json", "*.txt", "*.model", "*.safetensors")


def locate(setting: str, spec: str, packages: dict[str, str]) -> str:
    """What `from_pretrained` takes: a folder that exists, or a hub id.

    Args:
        setting: The setting's dotted path, for errors.
        spec: "package:<name>", a folder, or a hub id ("org/name" or "name").
        packages: Name after "package:" to the module that carries the weights.

    Raises:
        ConfigError: When the package name is unknown or the folder is not there.
        MissingExtraError: When the package is not installed.
    """
    if spec.startswith(PACKAGE_PREFIX):
        name = spec.removeprefix(PACKAGE_PREFIX)
        if name not in packages:
            allowed = ", ".join(f"{PACKAGE_PREFIX}{known}" for known in packages)
            raise ConfigError(setting, spec, f"{allowed}, a folder, or a hub id")
        return spec
    path = Path(spec).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if path.is_absolute() or spec.startswith((".", "~")) or spec.count("/") > 1 or path.is_file():
        raise ConfigError(setting, spec, "a folder with a Hugging Face checkpoint", "There is no such folder.")
    return spec


def package_module(name: str, feature: str) -> Any:
    """Import a package that carries weights.

    Raises:
        MissingExtraError: When it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise MissingExtraError(feature, "demo") from None


def from_pretrained(loader: Any, setting: str, where: str, wanted: str, **kwargs: Any) -> Any:
    """Call `loader.from_pretrained`; a folder never causes network traffic.

    Raises:
        ConfigError: When there is no such checkpoint, or it is not what is wanted.
    """
    from safetensors import SafetensorError

    try:
        with _quiet():
            return loader.from_pretrained(where, local_files_only=Path(where).is_dir(), **kwargs)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "A hub id needs a network or a filled cache; a folder needs neither."
        raise ConfigError(setting, where, wanted, f"{reason} {hint}") from None


def load_model(setting: str, where: str, wanted: str) -> tuple[nn.Module, bool]:
    """The checkpoint by `AutoModel` in float32, and whether its pooling layer has trained weights.

    Raises:
        ConfigError: When it cannot be loaded, or weights other than the pooling layer's are missing from it.
    """
    from transformers import AutoModel

    model, report = from_pretrained(AutoModel, setting, where, wanted, dtype=torch.float32, output_loading_info=True)
    missing = set(report["missing_keys"])
    pooler = {name for name in missing if "pooler." in name}
    if missing - pooler:
        some = ", ".join(sorted(missing - pooler)[:3])
        raise ConfigError(setting, where, wanted, f"The checkpoint lacks weights, among them {some}.")
    return model.eval(), not pooler


def backbone_id(name: str, module: nn.Module, settings: dict[str, Any], skip: str | None = None) -> str:
    """Hash of settings and weights, the same wherever the files lie.

    Args:
        name: A word for people, the first part of the id.
        module: Whose weights are hashed.
        settings: Whatever else the features depend on, as JSON values.
        skip: Weights with this in their name do not count.
    """
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for key, tensor in sorted(module.state_dict().items()):
        if skip is None or skip not in key:
            digest.update(key.encode())
            digest.update(_bytes(tensor))
    return f"{name}-{digest.hexdigest()[:16]}"


def freeze_where(module: nn.Module, unused: Callable[[str], bool]) -> None:
    """Take the weights that never reach the features out of training: wrappers wait for a gradient of every other."""
    for name, parameter in module.named_parameters():
        if unused(name):
            parameter.requires_grad_(False)


def autocast(device: torch.device, precision: Precision, count: int) -> torch.autocast:
    """The context in which features of `count` pieces are computed."""
    return torch.autocast(device.type, torch.bfloat16, enabled=count >= BF16_FROM and uses_bf16(precision, device))


def write_checkpoint(directory: Path, source: Path | None, parts: Iterable[Any], facts: dict[str, Any]) -> None:
    """Write a backbone's folder.

    Args:
        directory: Where to; made when it is not there.
        source: A folder that holds the same weights already, to link from; None writes `parts` anew.
        parts: Model, tokenizer or processor, each with `save_pretrained`.
        facts: Go into `backbone.json`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if source is not None and any(source.glob("*.safetensors")):
        for pattern in _LINKED:
            for file in sorted(source.glob(pattern)):
                if file.is_file() and file.name != BACKBONE_FILE:
                    link_or_copy(file, directory / file.name)
    else:
        with _quiet():
            for part in parts:
                part.save_pretrained(directory)
    (directory / BACKBONE_FILE).write_text(json.dumps(facts, indent=1) + "\n")


def read_facts(where: str) -> dict[str, Any]:
    """What `write_checkpoint` put into `backbone.json`; empty where there is none."""
    path = Path(where) / BACKBONE_FILE
    facts: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return facts


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers draws for every checkpoint, and without its report: we read that ourselves."""
    from transformers.utils import logging

    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().float().numpy().tobytes()
