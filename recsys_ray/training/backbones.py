"""How backbones inside the towers are trained: with adapters or whole, with or without their activations kept."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from recsys_ray.core.errors import ConfigError, MissingExtraError
from recsys_ray.encoders.config import LoraConfig
from recsys_ray.encoders.image import HubVision, ImageBackbone
from recsys_ray.encoders.modality import IMAGE, TEXT
from recsys_ray.encoders.text import TextBackbone
from recsys_ray.encoders.two_tower import TwoTower, trained_backbones

_BASE, _DOWN, _UP, _ADAPTER = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight", ".lora_"


def prepare_backbones(model: TwoTower) -> None:
    """Give the trained backbones the adapters and the checkpoints of activations that the settings ask for, in place.

    Raises:
        ConfigError: When a backbone knows no such thing.
        MissingExtraError: When adapters are asked for and peft is not installed.
    """
    for name, backbone in trained_backbones(model).items():
        config = _config(model, name)
        if config.mode == "lora":
            _add_adapters(_hub_model(backbone, f"model.{name}.mode", "lora"), config.lora)
        if config.checkpointing:
            hub: Any = _hub_model(backbone, f"model.{name}.checkpointing", True)
            try:
                hub.activation_checkpointing_enable()
            except ValueError as error:
                raise ConfigError(f"model.{name}.checkpointing", True, "false", str(error)) from None


def merged(weights: Mapping[str, Tensor], model: TwoTower) -> dict[str, Tensor]:
    r"""The weights as if there had never been adapters: :math:`W + \frac{\alpha}{r} B A` for each layer with one.

    Args:
        weights: The state of a model after `prepare_backbones`.
        model: That model.
    """
    scales = {}
    for column, name in enumerate(model.item_tower.towers[0].names):
        if name in trained_backbones(model):
            lora = _config(model, name).lora
            scales[f"item_tower.members.0.encoders.{column}."] = lora.alpha / lora.rank
    plain = {}
    for key, tensor in weights.items():
        layer, base, part = key.rpartition(_BASE)
        if base and part == "weight":
            scale = next(scale for prefix, scale in scales.items() if key.startswith(prefix))
            tensor = tensor + scale * weights[layer + _UP] @ weights[layer + _DOWN]
        if _ADAPTER not in key:
            plain[key.replace(_BASE, ".")] = tensor
    return plain


def _config(model: TwoTower, name: str) -> Any:
    return {TEXT: model.config.text, IMAGE: model.config.image}[name]


def _hub_model(backbone: Any, setting: str, value: Any) -> nn.Module:
    """The Hugging Face model in a backbone."""
    if isinstance(backbone, TextBackbone):
        return backbone.model
    if isinstance(backbone, ImageBackbone) and isinstance(backbone.features, HubVision):
        return backbone.features.model
    raise ConfigError(setting, value, "the default, or a backbone that is a Hugging Face model", "This one is none.")


def _add_adapters(model: nn.Module, config: LoraConfig) -> None:
    """Adapters beside every linear layer; only they learn."""
    try:
        from peft import LoraConfig as Lora
        from peft import inject_adapter_in_model
    except ModuleNotFoundError:
        raise MissingExtraError('mode "lora"', "lora") from None
    inject_adapter_in_model(Lora(r=config.rank, lora_alpha=config.alpha, target_modules="all-linear"), model)
