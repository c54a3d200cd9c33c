"""Channels over a catalogue that changes: what the release fitted, and what was put or deleted since."""

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.index.live import Present, merged, picked, places_of
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.channel import Reads, Source
from recsys_ray.retrieval.channels.content import ContentChannel, Neural, has_history, joined, weighed
from recsys_ray.retrieval.channels.table import SparseRows, evidence
from recsys_ray.retrieval.query import Queries


def restricted(queries: Queries, present: Present) -> Queries:
    """The questions as a channel over the first rows reads them; histories may name items that are gone."""
    allowed = present.allowed(queries.allowed, len(queries))
    if allowed is queries.allowed and present.covers(queries.history) and present.covers(queries.exclude):
        return queries
    history, exclude = present.listed(queries.history), present.listed(queries.exclude)
    return replace(queries, history=history, exclude=exclude, allowed=allowed)


@dataclass(frozen=True, eq=False)
class LiveChannel:
    """A channel that new items cannot enter, since it counts events; deleted ones leave it at once.

    Attributes:
        base: As it was fitted.
        present: Its rows that were not deleted.
    """

    base: Source
    present: Present

    @property
    def name(self) -> str:
        """See `Channel`."""
        return self.base.name

    @property
    def reads(self) -> Reads:
        """See `Channel`."""
        return self.base.reads

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`; (B, N) of the rows it was fitted with."""
        return self.base.scores(restricted(queries, self.present))

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        return self.base.retrieve(restricted(queries, self.present), k)


@dataclass(frozen=True, eq=False)
class LiveContent:
    """A content channel with items put over it, in its vocabulary: terms that only they have are not known.

    Attributes:
        base: As it was fitted.
        present: Which of its rows hold as they are there.
        rows: (d,) rows that were put since, rising.
        delta: The same channel over those d items; of an item that the base knows, with its events.
    """

    base: ContentChannel
    present: Present
    rows: IntArray
    delta: ContentChannel

    @classmethod
    def over(cls, base: ContentChannel) -> "LiveContent":
        """Without changes so far."""
        terms = sp.csr_matrix((0, len(base.tfidf.terms)), dtype=np.float32)
        neural = base.neural and Neural(base.neural.space_id, base.neural.vectors[:0])
        delta = ContentChannel(base.name, base.config, base.tfidf.with_items(terms), base.counts[:0], neural)
        return cls(base, Present(base.tfidf.num_items), np.zeros(0, np.int64), delta)

    @property
    def name(self) -> str:
        """See `Channel`."""
        return self.base.name

    @property
    def reads(self) -> Reads:
        """See `Channel`."""
        return self.base.reads

    @property
    def num_rows(self) -> int:
        """From 0 to the last row that was ever put."""
        return max(self.present.num_rows, int(self.rows[-1]) + 1 if len(self.rows) else 0)

    def put(self, rows: IntArray, terms: SparseRows, vectors: FloatArray | None, removed: IntArray) -> "LiveContent":
        """The channel after a batch of changes.

        Args:
            rows: (n,) what is new or has another content now, each once.
            terms: Of the n items, see `TfIdf.of_documents`.
            vectors: (n, D) in the space of the frozen vectors; None where the channel has none.
            removed: (m,) what is gone, none of `rows`.
        """
        kept = np.flatnonzero(~np.isin(self.rows, np.concatenate([rows, removed])))
        everything = np.concatenate([self.rows[kept], rows])
        order = np.argsort(everything)
        entries = (terms.values, terms.columns.values, terms.columns.offsets)
        new = sp.csr_matrix(entries, (len(rows), len(self.base.tfidf.terms)))
        items = sp.csr_matrix(sp.vstack([self.delta.tfidf.items.matrix()[kept], new]))[order]
        neural = self.delta.neural
        if neural is not None and vectors is not None:
            neural = Neural(neural.space_id, np.concatenate([neural.vectors[kept], vectors])[order])
        delta = replace(
            self.delta, tfidf=self.delta.tfidf.with_items(items), counts=self._counts(everything[order]), neural=neural
        )
        return replace(
            self, present=self.present.without(np.concatenate([rows, removed])), rows=everything[order], delta=delta
        )

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`; (B, num_rows), those of a channel whose base holds the items that were put."""
        queries = restricted(queries, Present(self.num_rows))
        old, new = self._steps(queries)
        terms = self._terms(old, new, queries)
        mix = self.base.mixes(queries)
        tfidf = self._laid(self.base.tfidf.postings.scores(terms), self.delta.tfidf.postings.scores(terms))
        neural = None
        if mix.any():
            without_text = replace(queries, vectors={})
            direction = self.base.direction(old, queries) + self.delta.direction(new, without_text)
            neural = self._laid(self.base.neural_scores(direction), self.delta.neural_scores(direction))
        likeness = weighed(mix, tfidf, neural)
        prior = self._laid(self.base.prior[None], self.delta.prior[None])[0]
        likeness[has_history(queries)] *= prior
        return evidence(queries, likeness)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        if len(queries) != 1 or self.base.mixes(queries).any():
            return top_k(self.scores(queries), k)
        old, new = self._steps(queries)
        terms, prior = self._terms(old, new, queries), has_history(queries).any()
        of_base = self.base.tfidf.postings.best_of_one(
            terms, restricted(queries, self.present), k, self.base.prior if prior else None
        )
        of_delta = self.delta.tfidf.postings.best_of_one(
            terms, self._of_delta(queries), k, self.delta.prior if prior else None
        )
        rows = np.where(of_delta.rows >= 0, self.rows[of_delta.rows], -1) if len(self.rows) else of_delta.rows
        return Candidates(*merged([(of_base.rows, of_base.scores), (rows, of_delta.scores)], k))

    def _steps(self, queries: Queries) -> tuple[SparseRows, SparseRows]:
        """The histories' steps among the rows of the base, and among those that were put."""
        steps = self.base.steps(queries)
        rows = steps.columns.values
        places = places_of(self.rows, rows)
        old, new = (places < 0) & (rows < self.present.num_rows), places >= 0
        of_delta = Ragged(places, steps.columns.offsets).where(new)
        return SparseRows(steps.columns.where(old), steps.values[old]), SparseRows(of_delta, steps.values[new])

    def _terms(self, old: SparseRows, new: SparseRows, queries: Queries) -> SparseRows:
        terms = self.base.terms(old, queries)
        return joined(terms, self.delta.tfidf.of_items(new)) if len(new.values) else terms

    def _of_delta(self, queries: Queries) -> Queries:
        places = Ragged(places_of(self.rows, queries.exclude.values), queries.exclude.offsets)
        allowed = None if queries.allowed is None else picked(queries.allowed, self.rows)
        return replace(queries, exclude=places.where(places.values >= 0), allowed=allowed)

    def _laid(self, old: FloatArray, new: FloatArray) -> FloatArray:
        """(B, num_rows) from (B, N) and (B, d); 0 where a row does not hold."""
        laid = np.zeros((len(old), self.num_rows), np.float32)
        laid[:, : self.present.num_rows] = old
        if self.present.mask is not None:
            laid[:, : self.present.num_rows][:, ~self.present.mask] = 0
        laid[:, self.rows] = new
        return laid

    def _counts(self, rows: IntArray) -> FloatArray:
        """(n,) events of some rows, 0 of those that are new."""
        counts = np.zeros(len(rows), np.float32)
        known = rows < len(self.base.counts)
        counts[known] = self.base.counts[rows[known]]
        return counts
