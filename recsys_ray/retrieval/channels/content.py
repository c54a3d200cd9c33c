"""Content: items whose texts and attributes are like those of the history, or like a free text.

TF-IDF and the frozen vectors of a neural backbone, alone or mixed, and how well an item is known.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np
from pydantic import Field, model_validator

from recsys_ray.core.arrays import BoolArray, FloatArray, Ragged
from recsys_ray.core.config import override
from recsys_ray.core.errors import ArtifactError, NotApplicable
from recsys_ray.index.exact import load_vectors, save_vectors
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.settings import ChannelSettings, Search
from recsys_ray.retrieval.channels.table import SparseRows, best_in_blocks, decayed, evidence, in_blocks
from recsys_ray.retrieval.channels.tfidf import TfIdf, vectorise
from recsys_ray.retrieval.query import Queries

AT_QUERY = frozenset({"decay", "history", "popularity", "mix", "text_mix"})
"""Settings that the vectors do not depend on."""

_TFIDF, _NEURAL, _COUNTS_FILE = "tfidf", "neural", "counts.npy"
_AUTO, _TEXT = "auto", "text"


class ContentConfig(ChannelSettings):
    """Likeness of content, item to item.

    Attributes:
        kind: Which channel this is.
        decay: What a step further back in the history counts, as a factor a step.
        history: The last so many items of a history are read.
        popularity: An item's likeness to a history is multiplied by (1 + its events) to this power; of two items that
            are as like, the better known one comes first.
        attribute_words: Whether the words of categorical values count as words of the text too.
        max_share: Words that more than this share of the items have are left out.
        space: Frozen vectors beside TF-IDF: "text", "image", … of the run; "auto" takes the text's where there are
            any; null for TF-IDF alone.
        mix: Share of the frozen vectors, 0 … 1.
        text_mix: The same for a question by text alone, which validation says nothing about.
    """

    kind: Literal["content"] = "content"
    decay: float = Field(0.8, gt=0, le=1)
    history: int = Field(50, ge=1)
    popularity: float = Field(0.2, ge=0, le=2)
    attribute_words: bool = True
    max_share: float = Field(0.5, gt=0, le=1)
    space: str | None = "auto"
    mix: float = Field(0.0, ge=0, le=1)
    text_mix: float = Field(0.7, ge=0, le=1)
    search: Search = Field(
        default_factory=lambda: {
            "popularity": (0.0, 0.1, 0.2, 0.3, 0.5),
            "decay": (0.5, 0.6, 0.7, 0.8, 0.9, 0.95),
            "mix": (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
        }
    )

    @model_validator(mode="after")
    def _mix_needs_space(self) -> Self:
        if self.mix and self.space is None:
            raise ValueError(f"a space beside mix = {self.mix}")
        return self


@dataclass(frozen=True)
class Neural:
    """Frozen vectors of the catalogue.

    Attributes:
        space_id: The space they live in.
        vectors: (N, D) float32 unit rows, zeros where an item has none.
    """

    space_id: str
    vectors: FloatArray


@dataclass(frozen=True)
class ContentChannel:
    """TF-IDF and, where `mix` is above 0, neural vectors.

    Attributes:
        name: See `Channel`.
        config: Its settings.
        tfidf: The catalogue's TF-IDF vectors.
        counts: (N,) float32 events of each item.
        neural: The frozen vectors, None without.
    """

    name: str
    config: ContentConfig
    tfidf: TfIdf
    counts: FloatArray
    neural: Neural | None

    @property
    def reads(self) -> Reads:
        """The history and free text."""
        return frozenset({"history", "text"})

    @cached_property
    def prior(self) -> FloatArray:
        """(N,) what an item's likeness to a history is multiplied by."""
        return (1 + self.counts) ** np.float32(self.config.popularity)

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        everything = np.arange(len(queries))
        likeness = in_blocks(
            len(queries), self.tfidf.num_items, lambda start, stop: self._likeness(queries.take(everything[start:stop]))
        )
        return evidence(queries, likeness)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        if len(queries) == 1 and not self.mixes(queries).any():
            prior = self.prior if has_history(queries).any() else None
            return self.tfidf.postings.best_of_one(self.terms(self.steps(queries), queries), queries, k, prior)
        everything = np.arange(len(queries))
        return best_in_blocks(
            len(queries), self.tfidf.num_items, k, lambda start, stop: self.scores(queries.take(everything[start:stop]))
        )

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        write_header(directory, self.name, self.config, {"space_id": self.neural and self.neural.space_id})
        np.save(directory / _COUNTS_FILE, self.counts)
        (directory / _TFIDF).mkdir()
        self.tfidf.save(directory / _TFIDF)
        if self.neural is not None:
            (directory / _NEURAL).mkdir()
            save_vectors(directory / _NEURAL, self.neural.vectors)

    def _likeness(self, queries: Queries) -> FloatArray:
        """(B, N) see `weighed`."""
        mix, steps = self.mixes(queries), self.steps(queries)
        neural = self.neural_scores(self.direction(steps, queries)) if mix.any() else None
        likeness = weighed(mix, self.tfidf.postings.scores(self.terms(steps, queries)), neural)
        likeness[has_history(queries)] *= self.prior
        return likeness

    def mixes(self, queries: Queries) -> FloatArray:
        """(B, 1) share of the frozen vectors in each question's scores."""
        mixes = np.full((len(queries), 1), 0.0 if self.neural is None else self.config.mix, np.float32)
        if self.neural is not None and self.neural.space_id in queries.vectors:
            by_text = np.array([bool(text) for text in queries.texts], bool)
            mixes[by_text & ~has_history(queries)] = self.config.text_mix
        return mixes

    def steps(self, queries: Queries) -> SparseRows:
        """What each step of the histories counts."""
        return decayed(queries.history, self.config.decay, self.config.history)

    def terms(self, steps: SparseRows, queries: Queries) -> SparseRows:
        """What each question asks for, in terms: its history and its text together."""
        history = self.tfidf.of_items(steps)
        if not any(queries.texts):
            return history
        return joined(history, self.tfidf.of_texts(queries.texts))

    def direction(self, steps: SparseRows, queries: Queries) -> FloatArray:
        """(B, D) the decayed sum of the history's frozen vectors, and the text's where it was encoded."""
        if self.neural is None:
            return np.zeros((len(queries), 1), np.float32)
        vectors = np.zeros((len(queries), self.neural.vectors.shape[1]), np.float32)
        np.add.at(
            vectors, steps.columns.row_of_value, self.neural.vectors[steps.columns.values] * steps.values[:, None]
        )
        if self.neural.space_id in queries.vectors:
            vectors += queries.vectors[self.neural.space_id]
        return vectors

    def neural_scores(self, direction: FloatArray) -> FloatArray:
        """(B, N) products of the frozen vectors with a direction."""
        if self.neural is None:
            return np.zeros((len(direction), self.tfidf.num_items), np.float32)
        scores: FloatArray = direction @ self.neural.vectors.T
        return scores


def fit(name: str, config: ContentConfig, data: FitData) -> ContentChannel:
    """Build the vectors.

    Raises:
        ConfigError: When the run has no such space.
        NotApplicable: When the items have neither words nor categorical values, and there are no frozen vectors.
    """
    tfidf = vectorise(data.items, data.fields, config.attribute_words, config.max_share)
    counts = data.events.item_counts().astype(np.float32)
    if config.space == _AUTO:
        config = override(config, {"space": _TEXT if _TEXT in data.spaces or config.mix else None})
    if config.space is None:
        if not tfidf.terms:
            raise NotApplicable(f"channel {name!r} needs items with texts or categorical values")
        return ContentChannel(name, config, tfidf, counts, None)
    space = data.space(f"channels.{name}.space", config.space)
    return ContentChannel(name, config, tfidf, counts, Neural(space.id, space.vectors))


def load(directory: Path) -> ContentChannel:
    """Read what `save` wrote.

    Raises:
        ArtifactError: When a file is missing or cannot be read.
    """
    header = read_header(directory)
    try:
        counts = np.load(directory / _COUNTS_FILE, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{directory / _COUNTS_FILE} cannot be read: {error}") from None
    space_id = header.facts["space_id"]
    neural = None if space_id is None else Neural(space_id, load_vectors(directory / _NEURAL))
    tfidf = TfIdf.load(directory / _TFIDF)
    return ContentChannel(header.name, ContentConfig.parse(header.config), tfidf, counts, neural)


def has_history(queries: Queries) -> BoolArray:
    """(B,) which questions are asked by a history, not by a text alone."""
    has: BoolArray = queries.history.lengths > 0
    return has


def weighed(mix: FloatArray, tfidf: FloatArray, neural: FloatArray | None) -> FloatArray:
    """(B, N) TF-IDF; where frozen vectors have a share, both parts, each divided by its largest score."""
    if neural is None:
        return tfidf
    mixed: FloatArray = (1 - mix) * _scaled(tfidf) + mix * _scaled(neural)
    return np.where(mix > 0, mixed, tfidf)


def _scaled(scores: FloatArray) -> FloatArray:
    """Each row divided by its largest score, negative ones set to 0."""
    positive = np.maximum(scores, 0)
    scaled: FloatArray = positive / np.maximum(positive.max(1, initial=0, keepdims=True), 1e-9)
    return scaled


def joined(first: SparseRows, second: SparseRows) -> SparseRows:
    """The sum of two sets of sparse rows; a column may come twice."""
    owners = np.concatenate([first.columns.row_of_value, second.columns.row_of_value])
    order = np.argsort(owners, kind="stable")
    offsets = first.columns.offsets + second.columns.offsets
    columns = np.concatenate([first.columns.values, second.columns.values])[order]
    values = np.concatenate([first.values, second.values])[order]
    return SparseRows(Ragged(columns, offsets), values)
