"""The user tower as an ONNX graph: what reads the history of a question while serving.

In float32, so it answers as the tower does within rounding. ONNX Runtime walks the many small steps of one history
three to four times as fast as torch, and lets go of the interpreter meanwhile.
"""

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray
from recsys_ray.core.errors import MissingExtraError, NotApplicable
from recsys_ray.encoders.onnx_session import open_session

if TYPE_CHECKING:  # serving reads the graph without torch
    from recsys_ray.encoders.two_tower import TwoTower

USER_TOWER_FILE = "user_tower.onnx"
_OPSET = 17
_MIN_COSINE = 0.9999
_CHECKED, _SEED = 32, 0


class OnnxUserTower:
    """Histories of item vectors to query vectors. Use `load_user_tower`.

    Args:
        session: ONNX Runtime's.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self._reads_tokens = len(session.get_inputs()) > 2

    def __call__(self, vectors: FloatArray, mask: BoolArray, user_tokens: IntArray | None) -> FloatArray:
        """(B, D) the answer at the newest position.

        Args:
            vectors: (B, H, D) unit item vectors, right-aligned.
            mask: (B, H) where there is an item.
            user_tokens: (B, T) attribute tokens, 0 is padding; None when the users have none.
        """
        inputs = {"vectors": vectors, "mask": mask}
        if self._reads_tokens:
            none = np.zeros((len(vectors), 1), np.int64)
            inputs["user_tokens"] = none if user_tokens is None else np.ascontiguousarray(user_tokens)
        found: FloatArray = self._session.run(None, inputs)[0]
        return found


def load_user_tower(path: Path) -> OnnxUserTower:
    """Load an exported user tower, with one thread.

    Raises:
        MissingExtraError: When ONNX Runtime is not installed.
        ArtifactError: When the file cannot be read.
    """
    return OnnxUserTower(open_session(path))


def export_user_tower(model: "TwoTower", path: Path) -> float:
    """Write the user tower of a model, and compare the graph with it on made-up histories; returns the least cosine.

    Raises:
        MissingExtraError: When onnx or ONNX Runtime is not installed.
        NotApplicable: When the tower cannot be exported, or the graph does not answer as it does.
    """
    import torch

    tower = _newest(model)
    inputs = _histories(model, 3, 5)
    names = ["vectors", "mask", "user_tokens"]
    axes = {"vectors": {0: "B", 1: "H"}, "mask": {0: "B", 1: "H"}, "user_tokens": {0: "B", 1: "T"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `onnx_export`: the comparison below is what counts
            torch.onnx.export(
                tower,
                inputs,
                str(path),
                input_names=names,
                output_names=["query"],
                dynamic_axes={**axes, "query": {0: "B"}},
                opset_version=_OPSET,
                dynamo=False,
            )
    except ModuleNotFoundError:
        raise MissingExtraError("Exporting the user tower", "cpu") from None
    except Exception as error:  # whatever a tower does that no graph can hold, torch still answers with it
        raise NotApplicable(f"user tower: it cannot be exported to ONNX: {error}") from None
    least = _least_cosine(model, path)
    if least < _MIN_COSINE:
        path.unlink()
        raise NotApplicable(
            f"user tower: its graph has a cosine to it of {least:.6f}; at least {_MIN_COSINE} is wanted"
        )
    return least


def _newest(model: "TwoTower") -> Any:
    """A copy of the tower that gives its answer at the newest position, in steps that a graph knows."""
    from torch import Tensor, nn

    class Newest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = copy.deepcopy(model.user_tower)
            for member in self.tower.towers:
                member.attributes = MeanOfPresent(member.attributes.weight)  # type: ignore[assignment]

        def forward(self, vectors: Tensor, mask: Tensor, user_tokens: Tensor) -> Tensor:
            answers: Tensor = self.tower(vectors, mask, user_tokens, newest=True)
            return answers[:, -1]

    class MeanOfPresent(nn.Module):
        """An `nn.EmbeddingBag` in mode "mean" with padding 0, which ONNX has none of."""

        def __init__(self, weight: Tensor) -> None:
            super().__init__()
            self.weight = nn.Parameter(weight)

        def forward(self, tokens: Tensor) -> Tensor:
            present = (tokens > 0).unsqueeze(-1).float()
            total: Tensor = (self.weight[tokens] * present).sum(1)
            return total / present.sum(1).clamp(min=1.0)

    return Newest().eval()


def _least_cosine(model: "TwoTower", path: Path) -> float:
    import torch

    graph = load_user_tower(path)
    least = 1.0
    for length in (1, 2, model.config.user.history):
        vectors, mask, tokens = _histories(model, _CHECKED, length)
        with torch.inference_mode():
            wanted = model.user_tower(vectors, mask, tokens, newest=True)[:, -1].numpy()
        least = min(least, float((graph(vectors.numpy(), mask.numpy(), tokens.numpy()) * wanted).sum(1).min()))
    return least


def _histories(model: "TwoTower", count: int, length: int) -> tuple[Any, Any, Any]:
    """Right-aligned histories of random lengths and vectors, with random user attributes."""
    import torch

    rng = np.random.default_rng(_SEED)
    vectors = rng.standard_normal((count, length, model.config.width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    mask = np.arange(length) >= rng.integers(0, length, (count, 1))
    tokens = rng.integers(0, max(1, model.spec.num_user_tokens), (count, 3))
    return torch.from_numpy(vectors), torch.from_numpy(mask), torch.from_numpy(tokens)
