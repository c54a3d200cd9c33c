"""What runs the backward pass, sums gradients over the workers and steps the optimizer; here with plain torch."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from recsys_ray.encoders.config import Precision
from recsys_ray.encoders.precision import uses_bf16
from recsys_ray.training.optimizer import set_learning_rate
from recsys_ray.training.tables import LazyTables, RowGradient, SparseTable, require_same

_PLAIN_FILE = "engine.pt"

BuildOptimizer = Callable[[nn.Module], Optimizer]


@runtime_checkable
class Engine(Protocol):
    """Holds the model, its gradients and its optimizer. Every method is called by all ranks together."""

    @property
    def model(self) -> Callable[..., Any]:
        """Call it for the forward pass of a training step."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the batch has to be."""
        ...

    def precision(self) -> AbstractContextManager[Any]:
        """Around forward and loss."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Make the gradients of the sum of all ranks' losses."""
        ...

    def step(self, learning_rate: float) -> None:
        """Update the weights by the gradients, and drop those."""
        ...

    def evaluating(self) -> AbstractContextManager[nn.Module]:
        """Within it, the model as it would be served, in evaluation mode. All ranks run the same modules in step."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """The whole model as it would be served, on the CPU of rank 0; others may get nothing. May share its memory."""
        ...

    def save(self, directory: Path) -> None:
        """Write what this rank holds into an existing directory; those of all ranks may be one and the same."""
        ...

    def load(self, directory: Path) -> None:
        """Read what all ranks have saved; at the same number of ranks, unless the engine is `elastic`."""
        ...

    @property
    def elastic(self) -> bool:
        """Whether another number of ranks can go on from what is saved."""
        ...


class PlainEngine:
    """torch, each rank with the whole model; gradients are summed over the ranks in one flat buffer.

    Args:
        model: Already on its device. Rank 0's weights are given to all.
        build_optimizer: Makes the optimizer over the model.
        precision: bf16 is autocast.
        clip_norm: Largest gradient norm, None for any.
        average: Decay a step of the exponential average of the weights, None for none. The first steps count less
            than this, (1 + t) / (10 + t), so that a short run is not held back by the weights it began with.
        sparse: Parameter name to embedding table, which `build_optimizer` leaves out: they are updated row by row.
    """

    def __init__(
        self,
        model: nn.Module,
        build_optimizer: BuildOptimizer,
        precision: Precision = "fp32",
        clip_norm: float | None = None,
        average: float | None = None,
        sparse: Mapping[str, SparseTable] | None = None,
    ) -> None:
        self._model, self._precision, self._clip_norm, self._decay = model, precision, clip_norm, average
        self._sparse = tuple(sparse or ())
        named = model.named_parameters()
        self._parameters = [one for name, one in named if one.requires_grad and name not in self._sparse]
        if _world_size() > 1:
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, src=0)
        self._optimizer = build_optimizer(model)
        self._average = None if average is None else {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._averaged = 0
        self._tables = LazyTables(sparse, self._average) if sparse else None
        self._rows: dict[str, RowGradient] = {}
        model.train()

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._model

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return self._parameters[0].device

    def precision(self) -> AbstractContextManager[Any]:
        """Autocast, when asked for."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=uses_bf16(self._precision, self.device))

    def backward(self, loss: Tensor) -> None:
        """Gradients of this rank's loss, summed over the ranks."""
        loss.backward()  # type: ignore[no-untyped-call]
        if _world_size() > 1:
            self._sum_gradients()
        if self._tables is not None:
            self._rows = self._tables.gradients()

    def step(self, learning_rate: float) -> None:
        """Clip, step, average."""
        self._clip()
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._optimizer.step()
        self._optimizer.zero_grad()
        decay = 1.0
        if self._average is not None and self._decay is not None:
            decay = min(self._decay, (1 + self._averaged) / (10 + self._averaged))
            state = self._model.state_dict()
            names = [name for name in state if name not in self._sparse]
            kept, present = [self._average[name] for name in names], [state[name] for name in names]
            torch._foreach_lerp_(kept, present, 1.0 - decay)
            self._averaged += 1
        if self._tables is not None:
            self._tables.step(self._rows, learning_rate, decay)

    @contextmanager
    def evaluating(self) -> Iterator[nn.Module]:
        """The model with the averaged weights in it, where there are such."""
        self._model.eval()
        self._settle()
        self._swap()
        try:
            yield self._model
        finally:
            self._swap()
            self._model.train()

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights where there are such, else the present ones."""
        self._settle()
        state = self._model.state_dict() if self._average is None else self._average
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def save(self, directory: Path) -> None:
        """Rank 0 writes for all: every rank holds the same."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            state = {"model": self._model.state_dict(), "optimizer": self._optimizer.state_dict()}
            average = {"average": self._average, "averaged": self._averaged}
            rows = {"sparse": {} if self._tables is None else self._tables.state()}
            torch.save({**state, **average, **rows}, directory / _PLAIN_FILE)

    def load(self, directory: Path) -> None:
        """Read model, optimizer, average and sparse tables."""
        state = torch.load(directory / _PLAIN_FILE, map_location=self.device, weights_only=True)
        rows = state["sparse"]
        require_same(rows, self._sparse)
        self._model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._averaged = state["averaged"]
        for name, tensor in (self._average or {}).items():
            tensor.copy_(state["average"][name])
        if self._tables is not None:
            self._tables.load(rows)

    @property
    def elastic(self) -> bool:
        """Every rank holds the whole."""
        return True

    def _clip(self) -> None:
        """Scale the whole gradient, rows of tables included, to the longest that it may be."""
        if self._clip_norm is None:
            return
        gradients = [one.grad for one in self._parameters if one.grad is not None]
        rows = [values for _, values in self._rows.values()]
        total = nn.utils.get_total_norm([*gradients, *rows])
        nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, total)
        factor = torch.clamp(self._clip_norm / (total + 1e-6), max=1.0)  # that of torch
        for values in rows:
            values.mul_(factor)

    def _settle(self) -> None:
        """Bring all rows of sparse tables up to date."""
        if self._tables is not None:
            self._tables.settle()

    def _swap(self) -> None:
        """Exchange the weights with their average, one after the other: no second copy of the model."""
        if self._average is not None:
            for name, tensor in self._model.state_dict().items():
                kept = tensor.clone()
                tensor.copy_(self._average[name])
                self._average[name].copy_(kept)

    def _sum_gradients(self) -> None:
        """All gradients in one collective; a parameter that this rank did not use counts as zero."""
        flat = torch.cat([_gradient(parameter).flatten() for parameter in self._parameters])
        dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in self._parameters]
        for parameter, piece in zip(self._parameters, torch.split(flat, sizes), strict=True):
            # Laid out as the weights are (convolutions keep theirs channels last): fused optimizers walk the memory of
            # both side by side, whatever the strides say.
            parameter.grad = torch.empty_like(parameter).copy_(piece.view_as(parameter))


def _world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
