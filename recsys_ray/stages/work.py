"""What every stage is given, and the scope of events that a fit may see."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Literal, Self

from recsys_ray.config import RunConfig
from recsys_ray.core.arrays import IntArray
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.events import Events
from recsys_ray.core.on_ray import connected
from recsys_ray.data.dataset import Dataset, Targets
from recsys_ray.stages.runner import StageRunner
from recsys_ray.training.progress import EpochRecord

FIRST_FOLD = "fold 1"
Watch = Callable[[str, EpochRecord], None]
"""Takes the name of a scope and an epoch of the training on it, while it runs."""


@dataclass
class Work:
    """One run at work. A with block: what was started for it ends with it.

    Attributes:
        config: The whole configuration.
        runner: Finds or makes artifacts.
        watch: Looks on while towers are trained; None where nobody does.
    """

    config: RunConfig
    runner: StageRunner
    watch: Watch | None = None
    _exits: ExitStack = field(default_factory=ExitStack)
    _connected: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    def need_ray(self) -> None:
        """Connect to the cluster, once; a run whose artifacts are all there never does."""
        if not self._connected:
            settings = self.config.ray
            self._exits.enter_context(connected(settings.address, settings.num_cpus, settings.object_store_bytes))
            self._connected = True


@dataclass(frozen=True)
class Data:
    """A dataset artifact and what is in it."""

    artifact: Artifact
    dataset: Dataset

    @property
    def user_tokens(self) -> IntArray | None:
        """(U, T) attribute tokens of the users, None when users have none."""
        tokens = self.dataset.user_tokens
        return tokens if tokens.shape[1] else None


@dataclass(frozen=True)
class Scope:
    """The events that a fit may see.

    Attributes:
        name: For people and artifact ids.
        events: To fit on.
        validation: To choose settings on; None where settings were chosen before.
        epochs: How long to train, where validation does not say.
    """

    name: str
    events: Events
    validation: Targets | None
    epochs: int | None = None


def fold_scopes(dataset: Dataset) -> list[Scope]:
    """One a fold: fitted on its training events, choosing on its validation."""
    return [Scope(f"fold {place}", fold.train, fold.validation) for place, fold in enumerate(dataset.folds, 1)]


def refit_scope(dataset: Dataset, fold: int, epochs: int | None) -> Scope:
    """Train and validation of one fold (from 0) together, with what the fold's first fit chose."""
    return Scope(f"fold {fold + 1} with its validation", dataset.folds[fold].train_validation, None, epochs)


def publish_scope(dataset: Dataset, fit_on: Literal["all", "refit"], epochs: int | None) -> Scope:
    """What a release is fitted on, see `PublishConfig`."""
    if fit_on == "refit":
        return refit_scope(dataset, len(dataset.folds) - 1, epochs)
    return Scope("all events", dataset.events, None, epochs)
