r"""Embedding tables updated row by row: a step costs what the rows it meets cost, and gives what dense AdamW gives.

Adam goes on moving a row that gets no gradient, by what is left of its first moment, and an average of the weights goes
on following it. Both are known beforehand: with the moments m, v of step t, at which the row was met last, a later step
s moves it by

.. math:: -\alpha_s \frac{\sqrt{1 - \beta_2^s}}{1 - \beta_1^s} \Bigl(\frac{\beta_1}{\sqrt{\beta_2}}\Bigr)^{s - t} u
    \qquad u = \frac{m}{\sqrt v + \epsilon}

(Kingma and Ba 2015, arXiv:1412.6980, with g = 0; only epsilon is taken as if it faded too, which counts where a
gradient is as small as 1e-8), after it was shrunk by the decay. So a row is brought up to date when it is next read, by
sums over the steps since, which are the same for all rows that were met at the same step. TensorFlow's LazyAdam and
torch's SparseAdam leave these moves out, which is another optimizer: rare rows learn less of each meeting.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from recsys_ray.core.errors import ArtifactError
from recsys_ray.training.optimizer import BETAS, EPSILON, decay_by_name

LONGEST = 4096
"""Steps after which all rows are brought up to date: the sums over steps are as long, and each step adds to them."""
_BLOCK_ROWS = 1 << 14
_FRESH = (1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
"""The sums over no step: what fades of the first moment, then those of `Idle`."""

RowGradient = tuple[Int[Tensor, " r"], Float[Tensor, "r D"]]
"""Distinct rows of a table, and their gradients."""


@dataclass(frozen=True)
class SparseTable:
    """An embedding whose table is updated row by row, and the weight decay that AdamW gives it."""

    module: nn.Embedding | nn.EmbeddingBag
    weight_decay: float


class Idle:
    """What the steps since it was met do to a row, for each step of a stretch at which that may have been.

    A row that was met k steps after the stretch began, with weight w, average a and u, has by now the weight
    ``shrunk[k] w - moved[k] u`` and the average ``kept[k] a + followed[k] w - trailed[k] u``.

    Args:
        weight_decay: AdamW's.
        device: Where the table is.
    """

    def __init__(self, weight_decay: float, device: torch.device) -> None:
        self.step = 0
        self._weight_decay, self._device = weight_decay, device
        self.begin()

    def begin(self) -> None:
        """A new stretch: every row is up to date."""
        self._sums = torch.tensor([_FRESH], dtype=torch.float64, device=self._device).T

    def __len__(self) -> int:
        """Steps of the stretch so far."""
        return self._sums.shape[1] - 1

    def advance(self, learning_rate: float, decay: float) -> None:
        """One more step, with the decay of the average in it."""
        self.step += 1
        first, second = BETAS
        pace = learning_rate * math.sqrt(1 - second**self.step) / (1 - first**self.step)
        fading, shrunk, moved, kept, followed, trailed = self._sums
        shrinking = 1 - learning_rate * self._weight_decay
        fading = fading * (first / math.sqrt(second))
        shrunk, moved = shrinking * shrunk, shrinking * moved + pace * fading
        kept, followed = decay * kept, decay * followed + (1 - decay) * shrunk
        trailed = decay * trailed + (1 - decay) * moved
        sums = torch.stack([fading, shrunk, moved, kept, followed, trailed])
        self._sums = torch.cat([sums, sums.new_tensor([_FRESH]).T], dim=1)

    def since(self, steps: Int[Tensor, " r"]) -> list[Float[Tensor, "r 1"]]:
        """shrunk, moved, kept, followed and trailed of rows that were met at these steps of the stretch."""
        return [sums[steps].float().unsqueeze(1) for sums in self._sums[1:]]

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"step": self.step, "sums": self._sums}

    def load(self, state: Mapping[str, Any]) -> None:
        """Back from `state`."""
        self.step, self._sums = state["step"], state["sums"].to(self._device)


@dataclass(frozen=True)
class _Table:
    """One table: (N, D) weight, moments, average where there is one; (N,) when in the stretch a row was met."""

    weight: Tensor
    first: Tensor
    second: Tensor
    average: Tensor | None
    met: Tensor
    idle: Idle
    weight_decay: float

    @classmethod
    def of(cls, sparse: SparseTable, average: Tensor | None) -> "_Table":
        weight = sparse.module.weight.data
        met = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
        moments = torch.zeros_like(weight), torch.zeros_like(weight)
        return cls(weight, *moments, average, met, Idle(sparse.weight_decay, weight.device), sparse.weight_decay)


class LazyTables:
    """Tables of a model whose gradients are sparse, with AdamW's moments and the average of their weights.

    Args:
        tables: Parameter name to the embedding that holds it. Their gradients become sparse, and from here on each
            brings the rows that it is asked for up to date.
        average: Parameter name to the average of the weights; None where there is none.
    """

    def __init__(self, tables: Mapping[str, SparseTable], average: Mapping[str, Tensor] | None) -> None:
        self._parameters = {name: table.module.weight for name, table in tables.items()}
        averages = average or {}
        self._tables = {name: _Table.of(table, averages.get(name)) for name, table in tables.items()}
        for name, table in tables.items():
            table.module.sparse = True
            table.module.register_forward_pre_hook(partial(self._before_look_up, self._tables[name]))

    def gradients(self) -> dict[str, RowGradient]:
        """What the backward pass has left, summed over the ranks, and taken away from the parameters."""
        taken = {}
        for name, parameter in self._parameters.items():
            gradient = _nothing(parameter) if parameter.grad is None else parameter.grad
            taken[name] = _summed(gradient.coalesce())
            parameter.grad = None
        return taken

    @torch.no_grad()
    def step(self, gradients: Mapping[str, RowGradient], learning_rate: float, decay: float) -> None:
        """Update the rows that have a gradient; decay is that of the average, in this step."""
        for name, (rows, values) in gradients.items():
            table = self._tables[name]
            _catch_up(table, rows)
            table.idle.advance(learning_rate, decay)
            _update(table, rows, values, learning_rate, decay)
            if len(table.idle) >= LONGEST:
                _settle(table)

    @torch.no_grad()
    def settle(self) -> None:
        """Bring all rows up to date: before anybody looks at the whole."""
        for table in self._tables.values():
            _settle(table)

    def state(self) -> dict[str, Any]:
        """For a checkpoint, beside weights and average, which are those of the rows as they stand."""
        return {
            name: {"first": table.first, "second": table.second, "met": table.met, "idle": table.idle.state()}
            for name, table in self._tables.items()
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Back from `state`."""
        for name, table in self._tables.items():
            kept = state[name]
            table.first.copy_(kept["first"])
            table.second.copy_(kept["second"])
            table.met.copy_(kept["met"])
            table.idle.load(kept["idle"])

    @torch.no_grad()
    def _before_look_up(self, table: _Table, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if len(table.idle):
            _catch_up(table, torch.unique(arguments[0]))


def _settle(table: _Table) -> None:
    if len(table.idle):
        for rows in torch.split(torch.arange(len(table.met), device=table.met.device), _BLOCK_ROWS):
            _catch_up(table, rows)
        table.met.zero_()
        table.idle.begin()


def _catch_up(table: _Table, rows: Int[Tensor, " r"]) -> None:
    """What AdamW and the average have done to rows since they were met."""
    now = len(table.idle)
    rows = rows[table.met[rows] < now]
    if not len(rows):
        return
    since = table.met[rows].long()
    shrunk, moved, kept, followed, trailed = table.idle.since(since)
    weight, first, second = table.weight[rows], table.first[rows], table.second[rows]
    unit = first / (second.sqrt() + EPSILON)
    if table.average is not None:
        table.average[rows] = kept * table.average[rows] + followed * weight - trailed * unit
    table.weight[rows] = shrunk * weight - moved * unit
    steps = (now - since).double().unsqueeze(1)
    table.first[rows] = first * (BETAS[0] ** steps).float()
    table.second[rows] = second * (BETAS[1] ** steps).float()
    table.met[rows] = now


def _update(
    table: _Table, rows: Int[Tensor, " r"], gradient: Float[Tensor, "r D"], learning_rate: float, decay: float
) -> None:
    """One step of AdamW on rows that are up to date but for it."""
    first = torch.lerp(table.first[rows], gradient, 1 - BETAS[0])
    second = torch.lerp(table.second[rows], gradient.square(), 1 - BETAS[1])
    whole = [1 - beta**table.idle.step for beta in BETAS]
    scale = second.sqrt().div_(math.sqrt(whole[1])).add_(EPSILON)
    weight = table.weight[rows] * (1 - learning_rate * table.weight_decay) - learning_rate / whole[0] * first / scale
    table.first[rows], table.second[rows], table.weight[rows] = first, second, weight
    if table.average is not None:
        table.average[rows] = torch.lerp(table.average[rows], weight, 1 - decay)
    table.met[rows] = len(table.idle)


def tables_above(module: nn.Module, num_rows: int | None, weight_decay: float) -> dict[str, SparseTable]:
    """The trained embedding tables with more rows than this, by the name of their parameter; none for None."""
    if num_rows is None:
        return {}
    decays = decay_by_name(module, weight_decay)
    tables = {
        f"{name}.weight": inner
        for name, inner in module.named_modules()
        if isinstance(inner, nn.Embedding | nn.EmbeddingBag) and inner.num_embeddings > num_rows
    }
    return {name: SparseTable(inner, decays[name]) for name, inner in tables.items() if name in decays}


def require_same(written: Iterable[str], now: Iterable[str]) -> None:
    """Refuse a checkpoint in which other tables were sparse.

    Raises:
        ArtifactError: Saying which.
    """
    if differ := ", ".join(sorted(set(written) ^ set(now))):
        raise ArtifactError(
            f"the checkpoint was written under another training.sparse_tables, which changes how {differ} is kept: go "
            "on with the setting as it was"
        )


def _nothing(parameter: Tensor) -> Tensor:
    """The gradient of a table of which a rank has read no row."""
    rows = torch.zeros((1, 0), dtype=torch.int64, device=parameter.device)
    return torch.sparse_coo_tensor(
        rows, parameter.new_zeros(0, *parameter.shape[1:]), parameter.shape, check_invariants=True
    )


def _summed(gradient: Tensor) -> RowGradient:
    """A coalesced gradient, as rows and values, summed over the ranks in their order."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return gradient.indices()[0], gradient.values()
    rows, values = gradient.indices()[0], gradient.values()
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    lengths = [int(count) for count in counts]
    parts = [_gathered(one, lengths) for one in (rows, values)]
    whole = torch.sparse_coo_tensor(parts[0].unsqueeze(0), parts[1], gradient.shape, check_invariants=True).coalesce()
    return whole.indices()[0], whole.values()


def _gathered(mine: Tensor, lengths: list[int]) -> Tensor:
    """Those of all ranks, one after the other; collectives want equal sizes."""
    padded = mine.new_zeros(max(lengths), *mine.shape[1:])
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])
