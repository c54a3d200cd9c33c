"""Content: items whose texts and attributes are like those of the history, or like a free text.

TF-IDF and the frozen vectors of a neural backbone, alone or mixed; how much of each is chosen on validation.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from recsys_ray.core import metrics
from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import load_vectors, save_vectors
from recsys_ray.retrieval.candidates import Candidates, concatenate, top_k
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels.files import read_header, write_header
from recsys_ray.retrieval.channels.fit_data import FitData, ValidationPairs
from recsys_ray.retrieval.channels.settings import ChannelSettings
from recsys_ray.retrieval.channels.table import SparseRows, decayed, evidence, in_blocks
from recsys_ray.retrieval.channels.tfidf import TfIdf, vectorise
from recsys_ray.retrieval.query import Queries

_MIXES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_MAX_PAIRS = 2000
_TFIDF, _NEURAL = "tfidf", "neural"
_AUTO, _TEXT = "auto", "text"


class ContentConfig(ChannelSettings):
    """Likeness of content, item to item.

    Attributes:
        kind: Which channel this is.
        decay: What a step further back in the history counts, as a factor a step.
        history: The last so many items of a history are read.
        attribute_words: Whether the words of categorical values count as words of the text too.
        max_share: Words that more than this share of the items have are left out.
        space: Frozen vectors beside TF-IDF: "text", "image", … of the run; "auto" takes the text's where there are
            any and a validation (or `mix`) says how much of them; null for TF-IDF alone.
        mix: Share of the frozen vectors, 0 … 1; null chooses on validation.
        text_mix: The same for a question by text alone, which validation says nothing about.
    """

    kind: Literal["content"] = "content"
    decay: float = Field(0.8, gt=0, le=1)
    history: int = Field(50, ge=1)
    attribute_words: bool = True
    max_share: float = Field(0.5, gt=0, le=1)
    space: str | None = "auto"
    mix: float | None = Field(None, ge=0, le=1)
    text_mix: float = Field(0.7, ge=0, le=1)

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
        config: Its settings, with the mix that was chosen.
        tfidf: The catalogue's TF-IDF vectors.
        neural: The frozen vectors, None without.
    """

    name: str
    config: ContentConfig
    tfidf: TfIdf
    neural: Neural | None

    @property
    def mix(self) -> float:
        """Share of the neural part, as set or as chosen."""
        return self.config.mix or 0.0

    @property
    def reads(self) -> Reads:
        """The history and free text."""
        return frozenset({"history", "text"})

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`."""
        if not self._mixes(queries).any():
            return evidence(queries, self.tfidf.postings.scores(self._terms(queries)))
        num_items, everything = self.tfidf.num_items, np.arange(len(queries))
        mixed = in_blocks(len(queries), num_items, lambda a, b: self._mixed(queries.take(everything[a:b])))
        return evidence(queries, mixed)

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        if not self._mixes(queries).any():
            return self.tfidf.postings.best(self._terms(queries), queries, k)
        size = max(1, 4_000_000 // max(self.tfidf.num_items, 1))
        starts = range(0, len(queries), size)
        blocks = [queries.take(np.arange(start, min(start + size, len(queries)))) for start in starts]
        parts = [top_k(self.scores(block), k) for block in blocks]
        return concatenate(parts) if parts else Candidates.empty(0, k)

    def save(self, directory: Path) -> None:
        """See `Channel.save`."""
        facts: dict[str, Any] = {"mix": self.mix, "space_id": None if self.neural is None else self.neural.space_id}
        write_header(directory, self.name, self.config, facts)
        (directory / _TFIDF).mkdir()
        self.tfidf.save(directory / _TFIDF)
        if self.neural is not None:
            (directory / _NEURAL).mkdir()
            save_vectors(directory / _NEURAL, self.neural.vectors)

    def _steps(self, queries: Queries) -> SparseRows:
        return decayed(queries.history, self.config.decay, self.config.history)

    def _terms(self, queries: Queries) -> SparseRows:
        """What each question asks for, in terms: its history and its text together."""
        history = self.tfidf.of_items(self._steps(queries))
        if not any(queries.texts):
            return history
        return _joined(history, self.tfidf.of_texts(queries.texts))

    def _mixes(self, queries: Queries) -> FloatArray:
        """(B, 1) share of the frozen vectors in each question's scores."""
        mixes = np.full((len(queries), 1), 0.0 if self.neural is None else self.mix, np.float32)
        if self.neural is not None and self.neural.space_id in queries.vectors:
            by_text = np.array([bool(text) for text in queries.texts], bool)
            mixes[by_text & (queries.history.lengths == 0)] = self.config.text_mix
        return mixes

    def _mixed(self, queries: Queries) -> FloatArray:
        """(B, N) both parts, each divided by its largest score, in the ratio 1 - mix to mix."""
        mix = self._mixes(queries)
        terms = _scaled(self.tfidf.postings.scores(self._terms(queries)))
        return (1 - mix) * terms + mix * _scaled(self._neural_scores(queries))

    def _neural_scores(self, queries: Queries) -> FloatArray:
        """(B, N) cosines with the decayed sum of the history's vectors, and with the text's where it was encoded."""
        if self.neural is None:
            return np.zeros((len(queries), self.tfidf.num_items), np.float32)
        steps = self._steps(queries)
        vectors = np.zeros((len(queries), self.neural.vectors.shape[1]), np.float32)
        np.add.at(
            vectors, steps.columns.row_of_value, self.neural.vectors[steps.columns.values] * steps.values[:, None]
        )
        if self.neural.space_id in queries.vectors:
            vectors += queries.vectors[self.neural.space_id]
        return vectors @ self.neural.vectors.T


def fit(name: str, config: ContentConfig, data: FitData) -> ContentChannel:
    """Build the vectors and choose the mix.

    Raises:
        ConfigError: When the run has no such space, or the mix is to be chosen and there is no validation.
    """
    tfidf = vectorise(data.items, data.fields, config.attribute_words, config.max_share)
    config = _with_space(config, data)
    if config.space is None:
        return ContentChannel(name, config, tfidf, None)
    space = data.space(f"channels.{name}.space", config.space)
    channel = ContentChannel(name, config, tfidf, Neural(space.id, space.vectors))
    if config.mix is not None:
        return channel
    if data.validation is None or len(data.validation.items) == 0:
        raise ConfigError(f"channels.{name}.mix", None, "0 … 1", "There are no validation pairs to choose it on.")
    return replace(channel, config=override(config, {"mix": _choose_mix(channel, data.validation)}))


def load(directory: Path) -> ContentChannel:
    """Read what `save` wrote."""
    header = read_header(directory)
    space_id = header.facts["space_id"]
    neural = None if space_id is None else Neural(space_id, load_vectors(directory / _NEURAL))
    tfidf = TfIdf.load(directory / _TFIDF)
    return ContentChannel(header.name, ContentConfig.parse(header.config), tfidf, neural)


def _with_space(config: ContentConfig, data: FitData) -> ContentConfig:
    """The settings with "auto" decided."""
    if config.space != _AUTO:
        return config
    decidable = config.mix is not None or (data.validation is not None and len(data.validation.items) > 0)
    return override(config, {"space": _TEXT if _TEXT in data.spaces and decidable else None})


def _choose_mix(channel: ContentChannel, pairs: ValidationPairs) -> float:
    """The mix with the best mean of recall@10, ndcg@10 and recall@100; of equal ones the smallest."""
    if len(pairs.items) > _MAX_PAIRS:
        pairs = pairs.take(np.linspace(0, len(pairs.items) - 1, _MAX_PAIRS).astype(np.int64))
    ranks: list[list[metrics.RankArray]] = [[] for _ in _MIXES]
    queries = pairs.queries()
    size = max(1, 2_000_000 // max(channel.tfidf.num_items, 1))
    for start in range(0, len(queries), size):
        rows = np.arange(start, min(start + size, len(queries)))
        block, items = queries.take(rows), pairs.items.take(rows)
        terms = _scaled(channel.tfidf.postings.scores(channel._terms(block)))
        neural = _scaled(channel._neural_scores(block))
        for place, mix in enumerate(_MIXES):
            scores = evidence(block, (1 - mix) * terms + mix * neural)
            ranks[place].append(metrics.mean_ranks(scores[items.row_of_value], items.values))
    owner, count = pairs.items.row_of_value, len(queries)
    values = [_quality(np.concatenate(parts), owner, count) for parts in ranks]
    return _MIXES[int(np.argmax(values))]


def _quality(ranks: metrics.RankArray, owner: Any, count: int) -> float:
    wanted = ("recall@10", "ndcg@10", "recall@100")
    return float(np.mean([metrics.METRICS[name](ranks, owner, count).mean() for name in wanted]))


def _scaled(scores: FloatArray) -> FloatArray:
    """Each row divided by its largest score, negative ones set to 0."""
    positive = np.maximum(scores, 0)
    scaled: FloatArray = positive / np.maximum(positive.max(1, initial=0, keepdims=True), 1e-9)
    return scaled


def _joined(first: SparseRows, second: SparseRows) -> SparseRows:
    """The sum of two sets of sparse rows; a column may come twice."""
    owners = np.concatenate([first.columns.row_of_value, second.columns.row_of_value])
    order = np.argsort(owners, kind="stable")
    offsets = first.columns.offsets + second.columns.offsets
    columns = np.concatenate([first.columns.values, second.columns.values])[order]
    values = np.concatenate([first.values, second.values])[order]
    return SparseRows(Ragged(columns, offsets), values)
