"""EfficientNet-Lite0 in plain torch (Tan and Le 2019; the Lite variant without squeeze-and-excitation, with ReLU6).

Our own module, so that a release loads without the package its weights were published in; batch norms are folded into
the convolutions before them, since it is only ever run in evaluation mode when frozen.
"""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NUM_FEATURES = 1280
_NORM_EPS = 1e-3
# repeats, kernel, stride of the first, expansion, channels out
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class EfficientNetLite0(nn.Module):
    """Pictures (n, 3, 224, 224), scaled to about [-1, 1], to the mean of the last feature map (n, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, kernel=3, stride=2)
        self.blocks = nn.ModuleList(_blocks())
        self.head = Convolution(320, NUM_FEATURES, kernel=1)

    def forward(self, pixels: Float[Tensor, "n 3 S S"]) -> Float[Tensor, "n 1280"]:
        """Features before the classifier."""
        x = F.relu6(self.stem(pixels))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).mean((2, 3))


class Convolution(nn.Module):
    """A convolution with the padding of TensorFlow's "same": the odd pixel goes to the right and the bottom."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.uneven = stride == 2
        self.before = (kernel - stride) // 2
        self.after = kernel - stride - self.before
        padding = 0 if self.uneven else kernel // 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Float[Tensor, "n C S S"]) -> Float[Tensor, "n E T T"]:
        """Pad and convolve; sides are even wherever the stride is 2."""
        padded = F.pad(x, (self.before, self.after, self.before, self.after)) if self.uneven else x
        result: Tensor = self.conv(padded)
        return result


class InvertedResidual(nn.Module):
    """Expand, filter each channel alone, project; added to its input where shapes allow."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels_in * expansion
        self.expand = Convolution(channels_in, inner, kernel=1) if expansion > 1 else None
        self.depthwise = Convolution(inner, inner, kernel, stride, groups=inner)
        self.project = Convolution(inner, channels_out, kernel=1)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Float[Tensor, "n C S S"]) -> Float[Tensor, "n E T T"]:
        """One block."""
        wide = x if self.expand is None else F.relu6(self.expand(x))
        narrow: Tensor = self.project(F.relu6(self.depthwise(wide)))
        return x + narrow if self.residual else narrow


def fold(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The published checkpoint (bias-free convolutions and batch norms) as a state of `EfficientNetLite0`.

    Both list convolutions in the order they are run, each followed by its norm.
    """
    names = [name for name in published if name.endswith(("conv.weight", "conv_stem.weight", "conv_head.weight"))]
    norms = [name.removesuffix(".running_mean") for name in published if name.endswith(".running_mean")]
    targets = [name for name in EfficientNetLite0().state_dict() if name.endswith("conv.weight")]
    state = {}
    for name, norm, target in zip(_stem_first(names), _stem_first(norms), targets, strict=True):
        scale = published[f"{norm}.weight"] / torch.sqrt(published[f"{norm}.running_var"] + _NORM_EPS)
        state[target] = published[name] * scale.view(-1, 1, 1, 1)
        state[target.replace("weight", "bias")] = published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale
    return state


def _stem_first(names: list[str]) -> list[str]:
    """Stem, blocks in order, head: what comes last in the published names of the top level is the head."""
    stem = [name for name in names if name.startswith(("_conv_stem", "_bn0"))]
    head = [name for name in names if name.startswith(("_conv_head", "_bn1"))]
    return stem + [name for name in names if name.startswith("_blocks")] + head


def _blocks() -> Iterator[InvertedResidual]:
    channels = 32
    for repeats, kernel, stride, expansion, channels_out in _STAGES:
        for repeat in range(repeats):
            yield InvertedResidual(channels, channels_out, kernel, stride if repeat == 0 else 1, expansion)
            channels = channels_out
