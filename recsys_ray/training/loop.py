"""The training loop. It knows neither Ray nor DeepSpeed: it sees an `Engine`, and a hook that keeps checkpoints."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import cast

from torch import Tensor

from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.ahead import ahead
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.augment import Augmentation
from recsys_ray.training.backbones import merged
from recsys_ray.training.batches import BatchMaker, StepBatch, Windows, steps_per_epoch
from recsys_ray.training.checkpoint import load_checkpoint, save_checkpoint
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.engine import Engine
from recsys_ray.training.exposed import ExposedNegatives
from recsys_ray.training.hard import add_mined, mine
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.optimizer import learning_rate_factor
from recsys_ray.training.progress import Cut, EpochRecord, Progress, TrainResult
from recsys_ray.training.step import train_step
from recsys_ray.training.validation import item_vectors, subsample, validate

KeepCheckpoint = Callable[[EpochRecord | None, Callable[[Path], None]], None]
"""Called by every rank after each epoch with its record, and within an epoch, see `checkpoint_steps`, with None; and
with what writes this rank's part into a directory."""

Watch = Callable[[EpochRecord], None]
"""Called by rank 0 after each epoch, once its checkpoint is kept; a run that goes on first repeats those of before."""

POPULARITY = 0.5
SAY_EVERY_S = 20.0


@dataclass(frozen=True)
class Hooks:
    """How a run meets the world around it.

    Attributes:
        keep: Keeps checkpoints; None keeps none.
        resume: A checkpoint to go on from.
        stop_after: Train exactly so many epochs of the schedule, without early stopping.
        say: Takes each line for people; rank 0 speaks.
        watch: Takes each epoch's record; None where nobody looks on.
    """

    keep: KeepCheckpoint | None = None
    resume: Path | None = None
    stop_after: int | None = None
    say: Callable[[str], None] = say
    watch: Watch | None = None


def train(
    engine: Engine,
    model: TwoTower,
    data: TrainInput,
    config: TrainingConfig,
    place: tuple[int, int] = (0, 1),
    hooks: Hooks | None = None,
) -> TrainResult:
    """Train until the epochs are done or validation stops getting better.

    All ranks call it with the same arguments but `place`; with the same seed and number of ranks the weights are the
    same to the bit, also when the run was cut and went on from a checkpoint.

    Args:
        engine: Holds the model to train.
        model: That model; only its settings are read.
        data: Events, catalogue, validation.
        config: The settings.
        place: (rank, world size).
        hooks: Checkpoints, and where to stop.

    Returns:
        The weights of the best epoch and what was measured; the weights only on rank 0.

    Raises:
        TrainingError: When the loss is not finite.
        ConfigError: When nothing says when to stop: no validation, but patience and no `stop_after`.
    """
    hooks = hooks or Hooks()
    if data.validation is None and config.patience is not None and hooks.stop_after is None:
        raise ConfigError("training.patience", config.patience, "null, or stop_after", "There is no validation here.")
    run = _Run(engine, model, data, config, place, hooks)
    progress = Progress() if hooks.resume is None else load_checkpoint(hooks.resume, engine, place, config.seed)
    run.say(run.start_line(progress))
    _show(progress.records, hooks.watch, place)
    last_epoch = min(config.epochs, hooks.stop_after or config.epochs)
    while progress.epochs < last_epoch and not (hooks.stop_after is None and run.is_over(progress)):
        record = run.epoch(progress)
        run.keep_best(progress, record)
        run.keep_checkpoint(progress, record)
        _show([record], hooks.watch, place)
    run.say(f"training done: epoch {progress.best_epoch} of {progress.epochs} is kept")
    return TrainResult.of(progress)


def _show(records: Sequence[EpochRecord], watch: Watch | None, place: tuple[int, int]) -> None:
    if watch is not None and place[0] == 0:
        for record in records:
            watch(record)


def history_length(config: TrainingConfig, model: TwoTower) -> int:
    """Events in a window.

    Raises:
        ConfigError: When the user tower does not read as many.
    """
    longest = model.config.user.history
    if config.max_history is None:
        return longest
    if config.max_history > longest:
        raise ConfigError("training.max_history", config.max_history, f"at most model.user.history = {longest}")
    return config.max_history


def require_prefixes(config: TrainingConfig, model: TwoTower) -> None:
    """Refuse prefixes that this model's vectors do not have.

    Raises:
        ConfigError: When one is not shorter than the vectors, or there are several members, which stand side by side.
    """
    dim, members = model.config.dim, len(model.config.members)
    if config.matryoshka and (members > 1 or max(config.matryoshka) >= dim):
        allowed = f"lengths below model.dim = {dim}" if members == 1 else "() with several model.members"
        raise ConfigError("training.matryoshka", config.matryoshka, allowed)


class _Run:
    """What stays the same over the epochs."""

    def __init__(
        self,
        engine: Engine,
        model: TwoTower,
        data: TrainInput,
        config: TrainingConfig,
        place: tuple[int, int],
        hooks: Hooks,
    ) -> None:
        self._say, self._keep = hooks.say, hooks.keep
        self._engine, self._model, self._data, self._config, self._place = engine, model, data, config, place
        self._temperature = model.config.temperature
        history = history_length(config, model)
        require_prefixes(config, model)
        augmentation = Augmentation(model.config, data.words, config.seed)
        self._maker = BatchMaker(data, history, config, place, augmentation)
        popularity = POPULARITY if config.negatives_popularity is None else config.negatives_popularity
        self._sampler = NegativeSampler(data.train.item_counts(), config.negatives, popularity, config.seed)
        if self._sampler.draws_all and config.hard_negatives:
            allowed = f"0: all {data.train.num_items:,} items are negatives already, by training.negatives"
            raise ConfigError("training.hard_negatives", config.hard_negatives, allowed)
        if self._sampler.draws_all and config.exposed_negatives and config.exposed_weight == 1:
            raise ConfigError("training.exposed_weight", 1.0, "more or less than 1: all items are negatives, once each")
        self._exposed = ExposedNegatives(data.shown, config)
        self._pairs = PairSampler(data.inputs, config, place)
        self._steps_per_epoch = steps_per_epoch(data.train, history, config.batch_size)
        self._validation = (
            None if data.validation is None else subsample(data.validation, config.validation_users, config.seed)
        )

    def start_line(self, progress: Progress) -> str:
        """What is about to happen."""
        users = f"{len(self._data.train):,} events on {self._data.train.num_items:,} items"
        begin = f"going on after epoch {progress.epochs}" if progress.step else "training"
        return f"{begin}: {users}, up to {self._config.epochs} epochs of {self._steps_per_epoch} steps"

    def epoch(self, progress: Progress) -> EpochRecord:
        """Train one epoch, or what is left of it, then validate."""
        epoch = self._maker.epoch(progress.epochs)
        make = partial(self._batch, epoch=progress.epochs, mined=progress.mined)
        steps = zip(count(progress.step), epoch.after(progress.cut.steps))
        began = spoke = time.perf_counter()
        with closing(ahead(make, steps, self._config.waiting)) as batches:
            for batch in batches:
                self._step(batch, progress, began)
                cut = progress.cut
                if time.perf_counter() - spoke > SAY_EVERY_S:
                    spoke = time.perf_counter()
                    loss = cut.loss / cut.steps
                    self.say(f"epoch {progress.epochs + 1}: step {cut.steps} of {len(epoch)}, loss {loss:.4f}")
                every = self._config.checkpoint_steps
                if every is not None and cut.steps % every == 0 and cut.steps < len(epoch):
                    self.keep_checkpoint(progress, None)
                began = time.perf_counter()
        cut, progress.cut = progress.cut, Cut()
        speed = cut.sequences / cut.seconds
        return EpochRecord(progress.epochs + 1, cut.loss / cut.steps, speed, self._look(progress))

    def keep_checkpoint(self, progress: Progress, record: EpochRecord | None) -> None:
        """Where the run goes on from, should it be cut."""
        if self._keep is not None:
            self._keep(record, lambda directory: save_checkpoint(directory, self._engine, progress, self._place))

    def keep_best(self, progress: Progress, record: EpochRecord) -> None:
        """Record the epoch, and keep its weights when they are the best."""
        better = progress.improves(record.validation)
        progress.records.append(record)
        if better:
            progress.best_epoch = record.epoch
            weights = self._engine.weights()
            if self._place[0] == 0:
                progress.weights = {name: tensor.clone() for name, tensor in merged(weights, self._model).items()}
        self.say(_epoch_line(record, better))

    def is_over(self, progress: Progress) -> bool:
        """Whether early stopping says so."""
        patience = self._config.patience
        return patience is not None and progress.epochs - progress.best_epoch >= patience

    def say(self, text: str) -> None:
        """A line from rank 0."""
        if self._place[0] == 0:
            self._say(text)

    def _learning_rate(self, step: int) -> float:
        total = self._steps_per_epoch * self._config.epochs
        warmup = math.ceil(total * self._config.warmup)
        return self._config.learning_rate * learning_rate_factor(step, total, warmup, self._config.schedule)

    def _look(self, progress: Progress) -> dict[str, float]:
        """What the towers as they stand are worth, and what they take for right and is not."""
        if self._validation is None and not self._config.hard_negatives:
            return {}
        with self._engine.evaluating() as judged:
            model, place = cast(TwoTower, judged), self._place
            items = item_vectors(model, self._data, self._engine.device, place)
            if self._config.hard_negatives:
                progress.mined = mine(model, items, self._data, self._config, place)
            return {} if self._validation is None else validate(model, items, self._data, self._validation, place)

    def _batch(self, numbered: tuple[int, Windows], epoch: int, mined: Tensor) -> StepBatch:
        """This rank's share of a step: nothing but its arguments and the run's settings decide it."""
        step, windows = numbered
        draw = add_mined(self._sampler.draw(step), mined, windows.users)
        draw = self._exposed.add(draw, windows, step)
        return self._maker.make(windows, draw, self._pairs.draw(step), epoch)

    def _step(self, batch: StepBatch, progress: Progress, began: float) -> None:
        """One step, counted with the wait for its batch."""
        step, cut = progress.step, progress.cut
        loss = train_step(self._engine, batch, self._temperature, step, self._learning_rate(step))
        seconds = cut.seconds + time.perf_counter() - began
        progress.step += 1
        progress.cut = Cut(cut.steps + 1, cut.loss + loss, cut.sequences + batch.num_sequences, seconds)


def _epoch_line(record: EpochRecord, better: bool) -> str:
    line = f"epoch {record.epoch}: loss {record.loss:.4f}, {record.samples_per_s:,.0f} sequences/s"
    if record.validation:
        line += ", validation " + ", ".join(f"{name} {value:.4f}" for name, value in record.validation.items())
        line += " (best so far)" if better else ""
    return line
