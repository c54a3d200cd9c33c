"""`Events`: the one input of every fit. Interactions grouped by user, oldest first."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.sparse as sp

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged

_REAL_TIME_US = 10 * 365 * 86_400 * 1_000_000  # later than about 1980: a date, not a position in a history


@dataclass(frozen=True)
class Events:
    """Interactions in CSR order: those of user u are ``items[offsets[u]:offsets[u + 1]]``, oldest first.

    Attributes:
        offsets: (U + 1,) int64.
        items: (E,) int64 item rows.
        timestamps: (E,) int64 microseconds since 1970, never falling inside a user.
        weights: (E,) float32, 1 where the source has none.
        num_items: N, the size of the catalogue (rows may lack events).
    """

    offsets: IntArray
    items: IntArray
    timestamps: IntArray
    weights: FloatArray
    num_items: int

    @classmethod
    def from_columns(
        cls,
        users: IntArray,
        items: IntArray,
        timestamps: IntArray,
        weights: FloatArray,
        num_users: int,
        num_items: int,
    ) -> Self:
        """Sort columns into CSR order. Equal timestamps keep the order of the input."""
        order = np.lexsort((np.arange(len(users)), timestamps, users))
        counts = np.bincount(users, minlength=num_users).astype(np.int64)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)])
        return cls(
            offsets,
            np.asarray(items, np.int64)[order],
            np.asarray(timestamps, np.int64)[order],
            np.asarray(weights, np.float32)[order],
            num_items,
        )

    def __len__(self) -> int:
        return len(self.items)

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.offsets) - 1

    @property
    def users(self) -> IntArray:
        """(E,) the user row of each event."""
        return np.repeat(np.arange(self.num_users, dtype=np.int64), np.diff(self.offsets))

    @property
    def has_real_time(self) -> bool:
        """Whether timestamps are dates and not positions in a history."""
        return bool(len(self)) and int(np.median(self.timestamps)) > _REAL_TIME_US

    @property
    def histories(self) -> Ragged:
        """Each user's items, oldest first."""
        return Ragged(self.items, self.offsets)

    def where(self, mask: np.ndarray) -> "Events":
        """The events under a (E,) boolean mask, users and catalogue unchanged."""
        kept = np.bincount(self.users[mask], minlength=self.num_users)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)]).astype(np.int64)
        return Events(offsets, self.items[mask], self.timestamps[mask], self.weights[mask], self.num_items)

    def item_counts(self) -> IntArray:
        """(N,) how many events each item has."""
        return np.bincount(self.items, minlength=self.num_items).astype(np.int64)

    def matrix(self) -> sp.csr_matrix:
        """(U, N) float32, 1 where the user met the item at least once."""
        values = np.ones(len(self.items), np.float32)
        matrix = sp.csr_matrix((values, self.items, self.offsets), (self.num_users, self.num_items))
        matrix.sum_duplicates()
        matrix.data[:] = 1.0
        return matrix
