"""A batch of queries, as every channel reads it."""

from dataclasses import dataclass, field, replace

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.index.subset import Allowed


@dataclass(frozen=True)
class Queries:
    """B questions. What a question lacks is empty or None; a channel that needs it then returns no candidates.

    Attributes:
        history: Item rows the user met, oldest first.
        exclude: Item rows that must not come back (seen, or the item itself in a similar-items query).
        texts: (B,) free text, None where the question has none.
        user_tokens: (B, T) attribute tokens of the users, 0 where unknown; None when users have no attributes.
        vectors: Space id to (B, D) unit query vectors; filled in by the query encoders. A row of zeros: no vector.
        allowed: Which items may come back for each question; None allows all.
    """

    history: Ragged
    exclude: Ragged
    texts: tuple[str | None, ...]
    user_tokens: IntArray | None = None
    vectors: dict[str, FloatArray] = field(default_factory=dict)
    allowed: Allowed | None = None

    @classmethod
    def of_histories(cls, history: Ragged, exclude: Ragged | None = None) -> "Queries":
        """Questions by history alone; by default the history itself is excluded."""
        return cls(history, history if exclude is None else exclude, (None,) * len(history))

    @classmethod
    def of_texts(cls, texts: tuple[str, ...]) -> "Queries":
        """Questions by free text alone."""
        return cls(Ragged.empty(len(texts)), Ragged.empty(len(texts)), texts)

    def __len__(self) -> int:
        return len(self.history)

    def with_vectors(self, vectors: dict[str, FloatArray]) -> "Queries":
        """The same questions with query vectors added."""
        return replace(self, vectors={**self.vectors, **vectors})

    def take(self, rows: IntArray) -> "Queries":
        """Some of the questions, in the given order."""
        return Queries(
            self.history.take(rows),
            self.exclude.take(rows),
            tuple(self.texts[int(row)] for row in rows),
            None if self.user_tokens is None else self.user_tokens[rows],
            {space: vectors[rows] for space, vectors in self.vectors.items()},
            None if self.allowed is None else self.allowed.take(rows),
        )

    def mask_excluded(self, scores: FloatArray) -> FloatArray:
        """Set what must not come back to minus infinity, in place, and return the scores (B, N)."""
        scores[self.exclude.row_of_value, self.exclude.values] = -np.inf
        if self.allowed is not None:
            self.allowed.close(scores)
        return scores
