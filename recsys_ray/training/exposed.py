"""Exposed negatives: what a user was shown, chose something after, and never chose."""

import numpy as np

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.events import Events
from recsys_ray.training.batches import Windows
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.negatives import Draw

_STREAM = 2  # keeps these random numbers apart from those of negatives and pairs


def shown_at(train: Events, exposures: Events) -> Ragged:
    """The items that a user was shown since the event before, for each event; once each, in the order of their rows.

    What was shown at the very time of an event counts as shown before it. Left out are what the user chose, before or
    after, what nobody chose (only items with events are negatives), and what was shown after the user's last event. So
    nothing is read that is later than what is trained on, whatever else the exposures hold.

    Args:
        train: The events to learn from.
        exposures: In the same rows of users and items.

    Returns:
        (E) item rows.
    """
    users, items = exposures.users, exposures.items
    event = _next_event(train, exposures)
    pairs, chosen = (one.users * max(train.num_items, 1) + one.items for one in (exposures, train))
    kept = event < len(train)
    kept[kept] = train.users[event[kept]] == users[kept]
    kept &= (train.item_counts() > 0)[items] & ~np.isin(pairs, chosen)
    distinct = np.unique(event[kept] * max(train.num_items, 1) + items[kept])
    event, rows = np.divmod(distinct, max(train.num_items, 1))
    counts = np.bincount(event, minlength=len(train))
    return Ragged(rows, np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.int64))


class ExposedNegatives:
    """Adds what the users of a step were shown to its negatives, the same on every rank.

    An exposed item is there for one position alone: for all others the step is what it would be without. At that
    position it stands for itself, and what is drawn stands for all other items.

    Args:
        shown: See `shown_at`; None where there is none.
        config: How many, and the seed.

    Raises:
        ConfigError: When there are to be some, and nothing was shown.
    """

    def __init__(self, shown: Ragged | None, config: TrainingConfig) -> None:
        self._shown = shown if config.exposed_negatives else None
        self._each, self._seed = config.exposed_negatives // config.batch_size, config.seed
        if config.exposed_negatives and (shown is None or not len(shown.values)):
            hint = "No event of data.exposures comes before a training event of its user, with an item never chosen."
            raise ConfigError("training.exposed_negatives", config.exposed_negatives, "0 here", hint)

    def add(self, draw: Draw, windows: Windows, step: int) -> Draw:
        """The negatives of a step with at most as many for each of its windows, drawn evenly from what was shown.

        Args:
            draw: All other negatives.
            windows: Of all ranks.
            step: Counted over the whole run.
        """
        if self._shown is None:
            return draw
        at = self._some(windows, step)
        rows, column = np.unique(self._shown.values[at], return_inverse=True)
        place = np.searchsorted(self._shown.offsets, at, side="right") - 1
        log_expected = np.concatenate([draw.log_expected, np.full(len(rows), np.inf, np.float32)])
        return Draw(np.concatenate([draw.rows, rows]), log_expected, np.stack([place, len(draw.rows) + column]))

    def _some(self, windows: Windows, step: int) -> IntArray:
        """Places in the values of what was shown, at most `each` of every window."""
        assert self._shown is not None
        starts, ends = self._shown.offsets[windows.starts], self._shown.offsets[windows.ends]
        window = np.repeat(np.arange(len(windows)), ends - starts)
        firsts = np.cumsum(ends - starts) - (ends - starts)
        luck = np.random.default_rng([self._seed, step, _STREAM]).random(len(window))
        order = np.lexsort((luck, window))  # shuffled inside each window, which stands where it stood
        kept = np.sort(order[np.arange(len(window)) - firsts[window] < self._each])
        places: IntArray = starts[window[kept]] + kept - firsts[window[kept]]
        return places


def _next_event(train: Events, exposures: Events) -> IntArray:
    """(X,) the first event at or after each exposure, of its user or else of a later one; E for none."""
    users = np.concatenate([exposures.users, train.users])
    times = np.concatenate([exposures.timestamps, train.timestamps])
    is_event = np.arange(len(users)) >= len(exposures)
    order = np.lexsort((is_event, times, users))
    events_before = np.cumsum(is_event[order])
    result = np.empty(len(users), np.int64)
    result[order] = events_before
    return result[: len(exposures)]
