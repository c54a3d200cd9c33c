"""How far a run has come: what is recorded of each epoch, and the weights to keep."""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

MEASURE = "ndcg@10"
"""What validation chooses the epoch by."""


@dataclass(frozen=True)
class EpochRecord:
    """One epoch.

    Attributes:
        epoch: From 1.
        loss: Mean over its steps.
        samples_per_s: Sequences of all workers a second, validation excluded.
        validation: Metric name to value; empty when there was no validation.
    """

    epoch: int
    loss: float
    samples_per_s: float
    validation: dict[str, float]


@dataclass(frozen=True)
class Cut:
    """How far an epoch has come that is not done.

    Attributes:
        steps: Done.
        loss: Sum over them.
        sequences: Of all workers, trained on in them.
        seconds: They took.
    """

    steps: int = 0
    loss: float = 0.0
    sequences: int = 0
    seconds: float = 0.0


@dataclass
class Progress:
    """The state of the loop, beside what the engine holds.

    Attributes:
        records: One an epoch.
        step: Steps done.
        cut: Of the epoch that is going on.
        best_epoch: The epoch whose weights are kept; the last one when there is no validation.
        weights: Those weights; only rank 0 keeps them.
        mined: The hard negatives of the next epoch, (U, m) item rows by user, see `training.hard`; empty for none.
    """

    records: list[EpochRecord] = field(default_factory=list)
    step: int = 0
    cut: Cut = Cut()
    best_epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    mined: Tensor = field(default_factory=lambda: torch.zeros((0, 0), dtype=torch.int32))

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.records)

    def improves(self, validation: dict[str, float]) -> bool:
        """Whether an epoch with this validation is better than the best so far."""
        if not self.best_epoch or not validation:
            return True
        return validation[MEASURE] > self.records[self.best_epoch - 1].validation[MEASURE]

    def to_json(self) -> dict[str, Any]:
        """All but the tensors."""
        return {
            "records": [asdict(record) for record in self.records],
            "step": self.step,
            "cut": asdict(self.cut),
            "best_epoch": self.best_epoch,
        }

    @classmethod
    def from_json(cls, values: dict[str, Any], weights: dict[str, Tensor], mined: Tensor) -> "Progress":
        """Back from `to_json`."""
        records = [EpochRecord(**record) for record in values["records"]]
        return cls(records, values["step"], Cut(**values["cut"]), values["best_epoch"], weights, mined)


@dataclass(frozen=True)
class TrainResult:
    """What a run returns.

    Attributes:
        weights: The model's state, of the best epoch by validation, else of the last.
        best_epoch: That epoch, from 1; trains a second fit by `stop_after`.
        records: One an epoch that ran.
    """

    weights: dict[str, Tensor]
    best_epoch: int
    records: tuple[EpochRecord, ...]

    @property
    def validation(self) -> dict[str, float]:
        """The metrics of the best epoch; empty without validation."""
        return self.records[self.best_epoch - 1].validation if self.records else {}

    @classmethod
    def of(cls, progress: Progress) -> "TrainResult":
        """The result of a finished loop."""
        return cls(progress.weights, progress.best_epoch, tuple(progress.records))
