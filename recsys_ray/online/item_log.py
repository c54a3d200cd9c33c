"""The item log: upserts and deletes of items with sequence numbers, which every replica reads and applies."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ItemChange:
    """The newest change of one item.

    Attributes:
        sequence: From 1, higher than that of any earlier change.
        slot: A number of the item's own, from 0, that never changes: a new item has the same row in every replica,
            whatever that replica has read so far.
        item_id: External id.
        body: The item as the writer encoded it; None when it was deleted.
    """

    sequence: int
    slot: int
    item_id: str
    body: bytes | None


@dataclass(frozen=True)
class Head:
    """Where a log stands.

    Attributes:
        epoch: Names the log; another one where the log was lost and begun anew.
        sequence: Of the newest change, 0 when there is none.
    """

    epoch: str
    sequence: int


class ItemLog(Protocol):
    """A log that keeps the newest change of each item only, so that it grows with the items, not with the changes.

    Laws, checked by one contract test: sequence numbers rise in the order in which changes can be read, also with many
    writers; what `append` returned from is seen by every process, also after a crash; reading on from any sequence
    ends in the same items. All methods raise `StoreError` when the store cannot be reached.
    """

    def append(self, item_id: str, body: bytes | None) -> int:
        """Add an upsert, or a delete where there is no body; returns its sequence number."""
        ...

    def head(self) -> Head:
        """Where the log stands; cheap, since replicas ask many times a second."""
        ...

    def read(self, after: int, limit: int) -> list[ItemChange]:
        """At most `limit` changes whose sequence is higher than `after`, by rising sequence."""
        ...
