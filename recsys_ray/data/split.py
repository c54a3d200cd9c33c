"""Splits: which event of which fold is trained on, validated on and tested on."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.core.config import Config, execution
from recsys_ray.core.errors import DataError
from recsys_ray.core.events import Events

PartArray = npt.NDArray[np.int8]

# What an event is in one fold. Repeats are events of a window that are no target: met before, or twice in the window.
UNUSED, TRAIN, VALIDATION, TEST, VALIDATION_REPEAT, TEST_REPEAT = -1, 0, 1, 2, 3, 4
# Events of items that are kept cold: in no training and no history. Those of validation are targets all the same.
COLD_TRAIN, COLD_VALIDATION = 5, 6


class SplitConfig(Config):
    """How events become training, validation and test.

    Attributes:
        protocol: leave_one_out: a user's last event is the test, the one before it the validation, the rest is
            trained on; users with fewer than three events are trained on only. global_time: everybody's events
            before a point in time are trained on, those in the window after it validate, those in the next window
            test; no event of the future is ever seen. given: the three parts come as files.
        cuts: How many rolling cuts `global_time` makes; the windows end with the data and follow each other.
        window: Share of all events in one window of `global_time`.
        cold_items: This share of the items that have events is kept cold, to measure what nobody has met yet: their
            events are in no training data and no history, their catalogue content stays, and events of validation and
            test that find them remain as queries. What a user met is never a candidate for that user, cold or not.
        seed: Of the draw of the cold items.
        validation_events: The validation part of `given`: a file, a folder or a glob.
        test_events: The test part of `given`: a file, a folder or a glob.
    """

    protocol: Literal["leave_one_out", "global_time", "given"] = "leave_one_out"
    cuts: int = Field(5, ge=1)
    window: float = Field(0.05, gt=0.0, lt=0.5)
    cold_items: float = Field(0.0, ge=0.0, lt=1.0)
    seed: int = Field(0, ge=0)
    validation_events: str | None = execution(None)
    test_events: str | None = execution(None)

    @model_validator(mode="after")
    def _windows_leave_training_data(self) -> "SplitConfig":
        if (self.cuts + 1) * self.window >= 1:
            raise ValueError("cuts and window with (cuts + 1) * window < 1, so that the first fold has training data")
        return self

    @model_validator(mode="after")
    def _given_has_files(self) -> "SplitConfig":
        given = self.validation_events is not None and self.test_events is not None
        if self.protocol == "given" and not given:
            raise ValueError("with protocol=given, paths in validation_events and test_events")
        if self.protocol != "given" and (self.validation_events or self.test_events):
            raise ValueError("validation_events and test_events only with protocol=given")
        return self


def split_events(events: Events, config: SplitConfig, parts: PartArray | None) -> list[PartArray]:
    """What each event is in each fold.

    Args:
        events: All events.
        config: The protocol.
        parts: (E,) TRAIN, VALIDATION or TEST for `given`: the file that each event came from.

    Returns:
        One (E,) array a fold.
    """
    cold = cold_items(events, config.cold_items, config.seed)
    return [_with_cold(part, cold[events.items]) for part in _parts(events, config, parts)]


def cold_items(events: Events, share: float, seed: int) -> BoolArray:
    """(N,) which items are kept cold: this share of those that have events, the same ones for the same seed."""
    known = np.flatnonzero(events.item_counts())
    drawn = np.random.default_rng(seed).permutation(known)[: round(share * len(known))]
    cold = np.zeros(events.num_items, bool)
    cold[drawn] = True
    return cold


def future_share(events: Events, part: PartArray) -> float:
    """Share of the training events that lie after a test target, averaged over test targets: what a split leaks."""
    train = np.sort(events.timestamps[part == TRAIN])
    targets = events.timestamps[part == TEST]
    if not len(train) or not len(targets):
        return 0.0
    return float(1.0 - np.searchsorted(train, targets, side="right").mean() / len(train))


def _parts(events: Events, config: SplitConfig, parts: PartArray | None) -> list[PartArray]:
    """The protocol's parts, all items alike."""
    if config.protocol == "leave_one_out":
        return [_leave_one_out(events)]
    if config.protocol == "global_time":
        return _global_time(events, config)
    if parts is None:
        raise ValueError("the protocol 'given' needs the part of each event")
    return [_given(events, parts)]


def _with_cold(part: PartArray, cold: BoolArray) -> PartArray:
    """The parts with the (E,) events of cold items taken out of train and histories."""
    moved = {TRAIN: COLD_TRAIN, VALIDATION: COLD_VALIDATION, VALIDATION_REPEAT: UNUSED}
    result = part.copy()
    for before, after in moved.items():
        result[cold & (part == before)] = after
    return result


def _leave_one_out(events: Events) -> PartArray:
    part = np.full(len(events), TRAIN, np.int8)
    ends = events.offsets[1:][np.diff(events.offsets) >= 3]
    part[ends - 2] = VALIDATION
    part[ends - 1] = TEST
    return part


def _global_time(events: Events, config: SplitConfig) -> list[PartArray]:
    ordered = np.sort(events.timestamps)
    if not len(ordered) or ordered[0] == ordered[-1]:
        raise DataError("split.protocol=global_time needs events at different times; use leave_one_out or given")
    # Bounds are timestamps, so events of the same moment are never torn apart.
    shares = 1.0 - config.window * np.arange(config.cuts + 1, -1, -1)
    places = np.minimum((shares * len(ordered)).astype(np.int64), len(ordered) - 1)
    bounds = ordered[places]
    bounds[-1] = ordered[-1] + 1
    if (np.diff(bounds) <= 0).any() or bounds[0] == ordered[0]:
        raise DataError(
            f"split.window={config.window} with split.cuts={config.cuts} gives empty windows on {len(ordered)} events: "
            "too many events share a timestamp; use a larger window or fewer cuts"
        )
    return [_one_cut(events, *bounds[fold : fold + 3]) for fold in range(config.cuts)]


def _one_cut(events: Events, validation_from: int, test_from: int, test_to: int) -> PartArray:
    time = events.timestamps
    part = np.full(len(events), UNUSED, np.int8)
    part[time < validation_from] = TRAIN
    part[(time >= validation_from) & (time < test_from)] = VALIDATION
    part[(time >= test_from) & (time < test_to)] = TEST
    used = part != UNUSED
    # Events are in time order inside a user, so an item's first event is the only one that can be a target.
    repeat = used & ~_first_of_pair(events, used)
    part[repeat & (part == VALIDATION)] = VALIDATION_REPEAT
    part[repeat & (part == TEST)] = TEST_REPEAT
    return part


def _given(events: Events, parts: PartArray) -> PartArray:
    """Targets are de-duplicated in their own part only: a target that was trained on is a miss, as published."""
    part = parts.copy()
    for target, repeat in ((VALIDATION, VALIDATION_REPEAT), (TEST, TEST_REPEAT)):
        mask = parts == target
        part[mask & ~_first_of_pair(events, mask)] = repeat
    return part


def _first_of_pair(events: Events, mask: BoolArray) -> BoolArray:
    """(E,) whether an event under the mask is the first of its user and item under it."""
    places: IntArray = np.flatnonzero(mask)
    pairs = events.users[places] * max(events.num_items, 1) + events.items[places]
    first = np.zeros(len(events), bool)
    first[places[np.unique(pairs, return_index=True)[1]]] = True
    return first
