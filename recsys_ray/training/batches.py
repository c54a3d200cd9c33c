"""From events to training steps: windows over histories, a reproducible order, and one rank's share of each step."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import TrainingError
from recsys_ray.core.events import Events
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TrainBatch
from recsys_ray.training.alignment import Pairs, show_alone
from recsys_ray.training.augment import Augmentation, look
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.negatives import Draw

POOL_BATCHES = 16
"""Sequences are sorted by length inside shuffled pools of so many batches: little padding, still a random order."""


@dataclass(frozen=True)
class Windows:
    """W stretches of events, each of one user; window w predicts ``events[starts[w]:ends[w]]`` from what precedes.

    Attributes:
        users: (W,) user rows.
        starts: (W,) positions in `Events.items`.
        ends: (W,) positions in `Events.items`, past the last.
        firsts: (W,) where the user's own events begin.
    """

    users: IntArray
    starts: IntArray
    ends: IntArray
    firsts: IntArray

    def __len__(self) -> int:
        return len(self.users)

    def take(self, rows: IntArray) -> "Windows":
        """Some of the windows."""
        return Windows(self.users[rows], self.starts[rows], self.ends[rows], self.firsts[rows])

    @property
    def lengths(self) -> IntArray:
        """(W,) positions each window supervises."""
        return self.ends - self.starts


@dataclass(frozen=True)
class StepBatch:
    """One rank's share of a step.

    Attributes:
        inputs: What the model reads.
        target_rows: Catalogue rows of the targets, in the order of the supervised positions.
        weights: Their event weights, None when all count the same.
        negative_rows: Catalogue rows of the negatives of all ranks.
        log_expected: Log of their expected counts.
        own: Supervised positions of this rank, and which negatives stand for themselves at them.
        own_weight: As how many items these count there.
        num_positions: Supervised positions of all ranks together.
        num_sequences: Sequences of all ranks together.
        pairs: What is aligned.
        prefixes: Lengths of vectors with a loss of their own, beside the whole.
        views: What is seen of the pictures of the items, see `training.augment`; None where it is all.
    """

    inputs: TrainBatch
    target_rows: Int[Tensor, " P"]
    weights: Float[Tensor, " P"] | None
    negative_rows: Int[Tensor, " n"]
    log_expected: Float[Tensor, " n"]
    own: Int[Tensor, "2 k"]
    own_weight: float
    num_positions: int
    num_sequences: int
    pairs: Pairs
    prefixes: tuple[int, ...] = ()
    views: Float[Tensor, "m 4"] | None = None

    def looked_at(self) -> "StepBatch":
        """The same share with what is seen of its pictures; better made where the model is than sent there."""
        return replace(self, inputs=replace(self.inputs, items=look(self.inputs.items, self.views)), views=None)

    def to(self, device: torch.device) -> "StepBatch":
        """The same share on a device."""
        return StepBatch(
            self.inputs.to(device),
            self.target_rows.to(device),
            None if self.weights is None else self.weights.to(device),
            self.negative_rows.to(device),
            self.log_expected.to(device),
            self.own.to(device),
            self.own_weight,
            self.num_positions,
            self.num_sequences,
            self.pairs.to(device),
            self.prefixes,
            None if self.views is None else self.views.to(device),
        )


def cut_windows(events: Events, max_history: int, generator: np.random.Generator) -> Windows:
    """Cut every history into windows of at most `max_history` events, each event in exactly one.

    Histories that are longer are cut at places that move from epoch to epoch, so that every event is predicted from
    short and long contexts in turn; those that fit are one window.
    """
    lengths = np.diff(events.offsets)
    # A long history of L events is cut after `shift` events from the end, then every `max_history` events before.
    shifts = np.where(lengths > max_history, generator.integers(0, max_history, len(lengths)), 0)
    counts = -(-(lengths - shifts) // max_history) + (shifts > 0)
    users = np.repeat(np.arange(len(lengths), dtype=np.int64), counts)
    backwards = np.arange(len(users)) - np.repeat(np.cumsum(counts) - counts, counts)
    newest = backwards - (shifts > 0)[users]  # -1 for the short window behind the shift
    firsts, lasts = events.offsets[:-1][users], events.offsets[1:][users]
    ends = np.where(newest < 0, lasts, lasts - shifts[users] - newest * max_history)
    starts = np.where(newest < 0, lasts - shifts[users], np.maximum(ends - max_history, firsts))
    return Windows(users, starts, ends, firsts)


def plan_epoch(windows: Windows, batch_size: int, generator: np.random.Generator) -> list[IntArray]:
    """Rows of the windows of each global batch: shuffled, alike in length, and near equal in number."""
    order = generator.permutation(len(windows))
    lengths = windows.lengths
    num_batches = -(-len(order) // batch_size)
    num_pools = -(-num_batches // POOL_BATCHES)
    batches = []
    for pool in np.array_split(order, num_pools):
        by_length = pool[np.argsort(lengths[pool], kind="stable")]
        batches += np.array_split(by_length, -(-len(pool) // batch_size))
    return [batches[place] for place in generator.permutation(len(batches))]


def steps_per_epoch(events: Events, max_history: int, batch_size: int) -> int:
    """About how many batches an epoch has; windows of long histories move, so it differs a little by epoch."""
    lengths = np.diff(events.offsets)
    windows = np.where(lengths > max_history, (lengths + max_history - 1) / max_history + 0.5, lengths > 0).sum()
    return max(1, round(float(windows) / batch_size))


class BatchMaker:
    """Makes one rank's share of each step of an epoch.

    Args:
        data: The run's data.
        max_history: Items in a history.
        config: Batch size, event weights, seed, items at once, prefixes.
        place: (rank, world size).
        augmentation: What is seen of the items; None is all.
    """

    def __init__(
        self,
        data: TrainInput,
        max_history: int,
        config: TrainingConfig,
        place: tuple[int, int],
        augmentation: Augmentation | None = None,
    ) -> None:
        self._data, self._max_history, self._batch_size = data, max_history, config.batch_size
        self._seed, (self._rank, self._world_size) = config.seed, place
        self._weights: FloatArray | None = data.train.weights if config.event_weights else None
        self._items_at_once, self._prefixes = config.items_at_once, config.matryoshka
        self._own_weight, self._augmentation = config.exposed_weight, augmentation

    def epoch(self, epoch: int) -> "Epoch":
        """The steps of one epoch, the same for the same seed and epoch.

        Raises:
            TrainingError: When there are fewer sequences than workers.
        """
        generator = np.random.default_rng([self._seed, epoch])
        windows = cut_windows(self._data.train, self._max_history, generator)
        batches = plan_epoch(windows, self._batch_size, generator)
        if min(len(rows) for rows in batches) < self._world_size:
            raise TrainingError(
                f"a step has fewer sequences than the {self._world_size} workers: lower training.workers"
            )
        return Epoch(windows, batches)

    def make(self, windows: Windows, draw: Draw, pairs: Pairs, epoch: int = 0) -> StepBatch:
        """This rank's share of the global batch made of these windows, as items look in an epoch (from 0)."""
        mine = windows.take(np.arange(self._rank, len(windows), self._world_size))
        history, targets, places = pad_windows(self._data.train, mine)
        negatives = draw.slice_of(self._rank, self._world_size)
        target_rows = targets[targets >= 0]
        rows, positions = np.unique(
            np.concatenate([history[history >= 0], target_rows, negatives]), return_inverse=True
        )
        num_history, num_targets = int((history >= 0).sum()), len(target_rows)
        taken = torch.cat([torch.from_numpy(rows), pairs.rows, pairs.rows])
        items, views = self._seen(taken, epoch)
        inputs = TrainBatch(
            items=show_alone(items, len(pairs.rows)),
            history=torch.from_numpy(_refill(history, positions[:num_history])),
            targets=torch.from_numpy(_refill(targets, positions[num_history : num_history + num_targets])),
            negatives=torch.from_numpy(positions[num_history + num_targets :]),
            user_tokens=self._data.tokens_of(mine.users),
            pairs=torch.arange(len(rows), len(items)).view(2, -1),
            items_at_once=self._items_at_once,
        )
        return StepBatch(
            inputs=inputs,
            target_rows=torch.from_numpy(target_rows),
            weights=None if self._weights is None else torch.from_numpy(self._weights[places]),
            negative_rows=torch.from_numpy(draw.rows),
            log_expected=torch.from_numpy(draw.log_expected),
            own=_own_positions(draw.own, places),
            own_weight=self._own_weight,
            num_positions=int(windows.lengths.sum()),
            num_sequences=len(windows),
            pairs=pairs,
            prefixes=self._prefixes,
            views=views,
        )

    def _seen(self, rows: Int[Tensor, " m"], epoch: int) -> tuple[ItemInputs, Float[Tensor, "m 4"] | None]:
        items = self._data.inputs.take(rows)
        if self._augmentation is None:
            return items, None
        return self._augmentation.texts(items, rows, epoch), self._augmentation.views(rows, epoch)


@dataclass(frozen=True)
class Epoch:
    """The windows of one epoch and the rows of each global batch."""

    windows: Windows
    batches: list[IntArray]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Windows]:
        return self.after(0)

    def after(self, steps: int) -> Iterator[Windows]:
        """Those of the batches that come after so many."""
        return (self.windows.take(rows) for rows in self.batches[steps:])


def pad_windows(events: Events, windows: Windows) -> tuple[IntArray, IntArray, IntArray]:
    """Histories and targets of some windows, right-aligned and trimmed to the longest.

    Returns:
        (B, H) item rows read at each position, -1 for padding; (B, H) item rows that come next, -1 where nothing is
        supervised; (P,) places in `events` of the supervised targets. The first event of a user is predicted from a
        padded position: what to show somebody without a history.
    """
    width = int(windows.lengths.max(initial=1))
    places = windows.ends[:, None] - np.arange(width, 0, -1)
    supervised = places >= windows.starts[:, None]
    targets = np.where(supervised, events.items[np.maximum(places, 0)], -1)
    known = supervised & (places > windows.firsts[:, None])
    history = np.where(known, events.items[np.maximum(places - 1, 0)], -1)
    return history, targets, places[supervised]


def _own_positions(own: IntArray, places: IntArray) -> Int[Tensor, "2 k"]:
    """A draw's own negatives at the positions that are among these (P,) places, numbered as they stand there."""
    order = np.argsort(places)
    found = order[np.searchsorted(places, own[0], sorter=order).clip(max=len(places) - 1)]
    here = places[found] == own[0]
    return torch.from_numpy(np.stack([found[here], own[1, here]]))


def _refill(rows: IntArray, positions: IntArray) -> IntArray:
    filled = np.full(rows.shape, -1, np.int64)
    filled[rows >= 0] = positions
    return filled
