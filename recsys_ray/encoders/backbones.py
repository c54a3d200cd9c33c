"""Which backbone a configuration means."""

from recsys_ray.encoders.config import ImageConfig, TextConfig
from recsys_ray.encoders.image import ImageBackbone, load_image_backbone
from recsys_ray.encoders.text import TextBackbone, load_text_backbone


def load_backbone(config: TextConfig | ImageConfig, folder: str | None = None) -> TextBackbone | ImageBackbone:
    """Load the backbone of a modality, in evaluation mode.

    Args:
        config: Its settings.
        folder: A folder that `save` wrote, instead of what the settings name.

    Raises:
        ConfigError: When it is not there or is of another kind.
        MissingExtraError: When the package with the weights is not installed.
    """
    where = folder or config.backbone
    if isinstance(config, TextConfig):
        return load_text_backbone(where, config.max_tokens, config.precision)
    return load_image_backbone(where, config.precision)
