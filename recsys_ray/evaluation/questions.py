"""The questions of an evaluation: the split's own, a sample of them, and the same with a shorter history."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.data.dataset import Targets
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.query import Queries

SHORT = (0, 1, 2)
"""How many of the last events a short history keeps."""
ATTRIBUTES, WHOLE = "attributes", "all"


@dataclass(frozen=True)
class Questions:
    """Q questions, and what a replay needs beside them.

    Attributes:
        label: What people read while they are ranked.
        targets: The questions and what they should find.
        train_counts: (N,) events of each item that was fitted on.
        user_tokens: (U, T) attribute tokens of all users; None when users have none.
        without: Channel to the fusion of all others, for fused lists that leave one channel out.
        allowed: (N,) the items that may come back; None allows all.
    """

    label: str
    targets: Targets
    train_counts: IntArray
    user_tokens: IntArray | None = None
    without: Mapping[str, Fusion] = field(default_factory=dict)
    allowed: BoolArray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def know_attributes(self) -> bool:
        """Whether the users have attributes."""
        return self.user_tokens is not None and self.user_tokens.shape[1] > 0

    def queries(self) -> Queries:
        """As channels read them."""
        targets, tokens = self.targets, self.user_tokens if self.know_attributes else None
        return Queries(
            targets.history,
            targets.exclude,
            (None,) * len(targets),
            None if tokens is None else tokens[targets.users],
            allowed=None if self.allowed is None else Allowed.everywhere(Subset(self.allowed), len(targets)),
        )

    def take(self, rows: IntArray) -> "Questions":
        """Some of the questions, in the given order."""
        targets = self.targets
        part = Targets(
            targets.users[rows],
            targets.history.take(rows),
            targets.exclude.take(rows),
            targets.items.take(rows),
            targets.new_users[rows],
        )
        return replace(self, targets=part)

    def slice(self, start: int, stop: int) -> "Questions":
        """The questions from `start` up to `stop`."""
        return self.take(np.arange(start, min(stop, len(self)), dtype=np.int64))

    def sample(self, count: int | None, seed: int) -> "Questions":
        """At most `count` of the questions, drawn without repetition, in their order; None keeps all."""
        if count is None or len(self) <= count:
            return self
        return self.take(np.sort(np.random.default_rng(seed).choice(len(self), count, replace=False)))

    def among_cold(self) -> "Questions":
        """The questions that look for an item without any training event, asked among such items alone."""
        cold, items = self.train_counts == 0, self.targets.items
        sought = items.where(cold[items.values])
        asked = replace(self, label="test, cold items alone", without={}, allowed=cold)
        return replace(asked, targets=replace(self.targets, items=sought)).take(np.flatnonzero(sought.lengths))

    def last(self, count: int) -> "Questions":
        """The same users, of whom only the last `count` events are known.

        What they met before stays excluded: it can be no target, so rows that know more and less can be compared.
        """
        return replace(self, targets=replace(self.targets, history=self.targets.history.last(count)))

    def short(self) -> "dict[str, Questions]":
        """The questions asked with little known of the user: nothing, attributes alone, the last event, the last two.

        Attributes count as known beside one and two events, where users have any.
        """
        asked = {str(count): replace(self.last(count), label=f"test, {_known(count)}", without={}) for count in SHORT}
        if not self.know_attributes:
            return asked
        nothing = asked.pop("0")
        return {
            "0": replace(nothing, user_tokens=None),
            ATTRIBUTES: replace(nothing, label="test, attributes alone"),
            **asked,
        }


def _known(count: int) -> str:
    return {0: "no history", 1: "the last event alone"}.get(count, f"the last {count} events alone")
