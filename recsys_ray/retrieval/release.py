"""A loaded release answers without Ray: ``load_release(path).recommend(history=["1", "2"], k=20)``."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core import schema
from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.artifacts import Artifact, unsealed
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.progress import say
from recsys_ray.core.schema import Fields
from recsys_ray.online.history import HISTORIES_FILE, LiveHistory, PublishedHistories, read_histories
from recsys_ray.online.seen import ExcludeSeen
from recsys_ray.retrieval.canary import CANARY_FILE, record
from recsys_ray.retrieval.catalogue import Catalogue
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.explain import Source, explain
from recsys_ray.retrieval.filters import Filter
from recsys_ray.retrieval.fusion import Fused, Fusion, combine
from recsys_ray.retrieval.past import past_of_items, past_of_user
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release_files import (
    channel_names,
    load_encoders,
    load_release_channel,
    load_unindexed,
    open_release,
    read_settings,
    resolve_release,
)
from recsys_ray.retrieval.release_parts import FUSION_FILE, KIND, FrozenSpace, ReleaseParts, write_parts
from recsys_ray.retrieval.retriever import Retriever
from recsys_ray.retrieval.text_backends import TextEncoderConfig, choose, text_loader

__all__ = [
    "FrozenSpace",
    "Question",
    "Recommended",
    "Release",
    "ReleaseParts",
    "load_encoders",
    "load_release",
    "load_release_channel",
    "open_release",
    "resolve_release",
    "write_release",
]


@dataclass(frozen=True)
class Recommended:
    """One item of an answer.

    Attributes:
        item_id: External id.
        title: For people, None where the catalogue has none.
        score: Fused score; comparable within one answer only.
        channels: Channel to rank from 1 in its own list, best first.
        fields: The catalogue fields that were asked for.
    """

    item_id: str
    title: str | None
    score: float
    channels: dict[str, int]
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A question in rows, and what of it the release does not know.

    Attributes:
        queries: One query.
        channels: The channels that have something to say to it.
        unknown_items: Item ids that were ignored.
        known_user: False when a user id was given that has no history here.
    """

    queries: Queries
    channels: tuple[str, ...]
    unknown_items: tuple[str, ...] = ()
    known_user: bool = True


@dataclass(frozen=True)
class Release:
    """Everything that answering needs, verified and loaded.

    Attributes:
        artifact: The directory and its manifest.
        retriever: Channels, encoders, fusion.
        catalogue: Items by row, with what changed since it was published.
        histories: What the release knows of users.
        exposures: Kinds of events that say only what was shown.
    """

    artifact: Artifact
    retriever: Retriever
    catalogue: Catalogue
    histories: PublishedHistories
    exposures: frozenset[str] = frozenset()

    @property
    def id(self) -> str:
        """The release's id."""
        return self.artifact.id

    def warm_up(self) -> None:
        """Answer one question of each kind, so that backbones are loaded before the first real one comes."""
        self.answer(self.ask(self.question(self.item_ids.ids[:1]), 1))
        self.answer(self.ask(self.question(text="warm up"), 1))

    @property
    def items(self) -> pa.Table:
        """(N) the published catalogue's original fields, in row order."""
        return self.catalogue.items

    @property
    def item_ids(self) -> IdMap:
        """Ids and rows of the published catalogue."""
        return self.catalogue.item_ids

    @property
    def titles(self) -> list[str | None]:
        """(N,) titles in row order."""
        return self.catalogue.titles

    def recommend(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        text: str | None = None,
        k: int = 20,
        *,
        exclude_seen: ExcludeSeen = True,
        filters: Filter | None = None,
        fields: Sequence[str] = (),
    ) -> list[Recommended]:
        """The k best items for a history or a user, and a text that may come with them.

        Ids that the catalogue does not have are ignored, with a line that says so. Without any history the answer is
        that of the channels that answer everybody alike (popularity).

        Args:
            history: Item ids, oldest first.
            user_id: Instead of a history: a user the release knows.
            text: What the user asks for.
            k: How many.
            exclude_seen: Whether items of the history are left out; `Seen.within(days=30, kinds=["purchase"])` leaves
                out those of a user's events that fit.
            filters: Conditions on catalogue fields, see `retrieval.filters`.
            fields: Catalogue fields to put into the answer.

        Raises:
            ConfigError: When both history and user are given, an id is no text, or k, a filter or a field is wrong.
        """
        question = self.question(history, user_id, text, exclude_seen=exclude_seen, filters=filters)
        if question.unknown_items:
            say(f"ignored, not in the catalogue: {', '.join(question.unknown_items)}")
        if not question.known_user:
            say(f"user {user_id!r} is unknown: answered as for somebody new")
        return self.answer(self.ask(question, k), fields=fields)

    def similar(
        self, item_id: str, k: int = 20, *, filters: Filter | None = None, fields: Sequence[str] = ()
    ) -> list[Recommended]:
        """The k items most like one.

        Raises:
            ConfigError: When no channel tells items apart by what is like them.
            DataError: When the catalogue does not have the item.
        """
        if self.catalogue.row(item_id) < 0:
            raise DataError(f"item {item_id!r} is not in the catalogue of release {self.id}")
        question = self.question([item_id], filters=filters)
        return self.answer(self.ask(self.evidence_only(question), k), fields=fields)

    def search(
        self, text: str, k: int = 20, *, filters: Filter | None = None, fields: Sequence[str] = ()
    ) -> list[Recommended]:
        """The k items that fit a text best.

        Raises:
            ConfigError: When no channel reads texts.
        """
        question = self.question(text=text, filters=filters)
        return self.answer(self.ask(question, k), fields=fields)

    def search_picture(
        self, picture: bytes, k: int = 20, *, filters: Filter | None = None, fields: Sequence[str] = ()
    ) -> list[Recommended]:
        """The k items nearest to a picture (JPEG, PNG, …).

        Raises:
            ConfigError: When no space of the release reads pictures.
            DataError: When the picture cannot be decoded.
        """
        k = self._possible(k)
        question = self.question(filters=filters)
        vectors = {}
        for encoder in self.retriever.encoders:
            found = encoder.of_pieces("image", [picture])
            if found is not None:
                vectors[encoder.space_id] = found
        spaces = {name: c.space_id for name, c in self.retriever.channels.items() if isinstance(c, NearestChannel)}
        names = [name for name, space in spaces.items() if space in vectors]
        if not names:
            raise ConfigError("search", "a picture", "a text", f"Release {self.id} was made without pictures.")
        retriever = self.retriever.only(names, Fusion.equal(names, self.retriever.fusion.depth))
        queries = question.queries.with_vectors(vectors)
        return self.answer(combine(retriever.retrieve(queries, k), retriever.fusion, k), fields=fields)

    def question(
        self,
        history: Sequence[str] | None = None,
        user_id: str | None = None,
        text: str | None = None,
        *,
        exclude_seen: ExcludeSeen = True,
        filters: Filter | None = None,
        live: LiveHistory | None = None,
    ) -> Question:
        """A question in external ids as one query; see `recommend`. `live` is what came of the user since."""
        if history is not None and user_id is not None:
            raise ConfigError("recommend", {"history": list(history), "user_id": user_id}, "one of the two")
        _require_ids(history, user_id)
        live = live or LiveHistory()
        known_user = user_id is None or bool(live.events) or (user_id in self.histories and not live.erased)
        if user_id is None:
            past = past_of_items(history or (), self.catalogue, exclude_seen)
        else:
            past = past_of_user(user_id, self.histories, live, self.catalogue, exclude_seen)
        queries = Queries(
            history=Ragged.of([past.history]),
            exclude=Ragged.of([past.exclude]),
            texts=(text or None,),
            user_tokens=self._user_tokens(None if live.erased else user_id),
            allowed=self.catalogue.allowed(filters) if filters else None,
        )
        return Question(queries, self._channels_for(queries), past.unknown_items, known_user)

    def ask(self, question: Question, k: int) -> Fused:
        """The k best fused candidates of the channels that the question concerns; all there are where k is larger."""
        return self._retriever_for(question).recommend(question.queries, self._possible(k))

    def fusion_for(self, question: Question) -> Fusion:
        """The fusion that merges a question's lists: the tuned one where there is a history, as in its validation."""
        if len(question.queries.history.values):
            return self.retriever.fusion
        return self.retriever.untuned_fusion(list(question.channels))

    def answer(self, fused: Fused, query: int = 0, fields: Sequence[str] = ()) -> list[Recommended]:
        """The fused candidates of one query in external ids.

        Raises:
            ConfigError: When a field is not in the catalogue.
        """
        places = self._places(fused, query)
        rows = fused.candidates.rows[query, places]
        shown = self.catalogue.shown(rows, fields) if fields else []
        scores = fused.candidates.scores[query, places].tolist()
        sources = fused.sources(query, places)
        return [
            Recommended(
                self.catalogue.external(row),
                self.catalogue.title(row),
                scores[order],
                {name: rank + 1 for name, rank in sources[order].items()},
                shown[order] if shown else {},
            )
            for order, row in enumerate(rows.tolist())
        ]

    def explain(self, fused: Fused, query: int = 0) -> list[list[Source]]:
        """For each candidate of `answer`: what every channel said of it."""
        return [explain(fused, query, place) for place in self._places(fused, query)]

    def evidence_only(self, question: Question) -> Question:
        """The question without the channels that answer everybody alike: what is like an item has to do with it."""
        channels = tuple(name for name in question.channels if self.retriever.channels[name].reads)
        return Question(question.queries, channels)

    def _places(self, fused: Fused, query: int) -> list[int]:
        """The places of a list that hold an item; a replica that is behind may have named one that is gone."""
        places: list[int] = np.flatnonzero(self.catalogue.holds(fused.candidates.rows[query])).tolist()
        return places

    def _possible(self, k: int) -> int:
        """What is asked for, as far as the catalogue goes: lists are as wide as they are asked for."""
        if k < 1:
            raise ConfigError("k", k, "at least 1")
        return min(k, max(len(self.catalogue), 1))

    def _retriever_for(self, question: Question) -> Retriever:
        if not question.channels:
            have = ", ".join(self.retriever.channels)
            hint = f"Release {self.id} has only: {have}."
            raise ConfigError("question", "no channel for it", "what a channel of the release reads", hint)
        return self.retriever.only(list(question.channels), self.fusion_for(question))

    def _channels_for(self, queries: Queries) -> tuple[str, ...]:
        """A text asks for what fits it: channels that answer everybody alike would fill up with what does not."""
        channels = self.retriever.channels
        if queries.texts[0] and not len(queries.history.values):
            return tuple(name for name, channel in channels.items() if channel.reads & {"text", "vectors"})
        return tuple(channels)

    def _user_tokens(self, user_id: str | None) -> IntArray | None:
        tokens = self.histories.tokens(user_id) if user_id is not None else []
        return np.array([tokens], np.int64) if tokens else None


def _require_ids(history: Sequence[str] | None, user_id: str | None) -> None:
    """Ids are text, whatever the columns of the raw files held: 7 would be an unknown item, "7" is none."""
    if isinstance(history, str):
        raise ConfigError("history", history, "a list of item ids", f"For one item: [{history!r}].")
    for setting, ids in (("history", history or ()), ("user_id", () if user_id is None else (user_id,))):
        wrong = next((one for one in ids if not isinstance(one, str)), None)
        if wrong is not None:
            raise ConfigError(setting, wrong, "ids as text", f"Write {str(wrong)!r}.")


def load_release(
    path: str | Path, text_encoder: TextEncoderConfig | None = None, unindexed: Collection[str] = ()
) -> Release:
    """Verify and load a release.

    Args:
        path: A release's directory, or the storage of a run: then its active release, or its newest.
        text_encoder: What encodes the texts of questions; by default the fastest that the release offers.
        unindexed: Nearest channels whose index is not loaded, since it is asked elsewhere, in shards: their vectors are
            mapped, and searched exactly where they are searched here all the same.

    Raises:
        ConfigError: When the release does not offer that.
        ArtifactError: When there is none, a file is missing, changed or not readable.
        SpaceError: When towers and an index belong to different spaces.
        MissingExtraError: When its index needs FAISS and it is not installed.
    """
    return _load(open_release(path), text_encoder, unindexed)


def write_release(directory: Path, parts: ReleaseParts) -> dict[str, Any]:
    """Fill the empty directory of a release artifact (`ArtifactStore.publish("release", …)`); returns its summary.

    What was written is loaded again and asked: its answers are the release's canary.

    Raises:
        ArtifactError: When the fusion does not fit the channels.
        SpaceError: When a channel searches a space that nothing in the release encodes queries for.
    """
    summary = write_parts(directory, parts)
    record(_load(unsealed(directory, KIND))).save(directory / CANARY_FILE)
    return summary


def assemble(
    artifact: Artifact, channels: Mapping[str, Channel], text_encoder: TextEncoderConfig | None = None
) -> Release:
    """A release of its loaded channels and what else is in its verified files; raises as `load_release`."""
    items = pq.read_table(artifact.file(schema.ITEMS_FILE)).combine_chunks()
    catalogue = Catalogue.of(items, Fields.load(artifact.file(schema.FIELDS_FILE)))
    texts = text_loader(artifact, choose(artifact, text_encoder or TextEncoderConfig()))
    encoders = load_encoders(artifact, channels, texts)
    return Release(
        artifact=artifact,
        retriever=Retriever(channels, encoders, Fusion.load(artifact.file(FUSION_FILE))),
        catalogue=catalogue,
        histories=read_histories(artifact.file(HISTORIES_FILE), catalogue.item_ids),
        exposures=frozenset(read_settings(artifact).get("exposures", ())),  # releases of before name none
    )


def _load(
    artifact: Artifact, text_encoder: TextEncoderConfig | None = None, unindexed: Collection[str] = ()
) -> Release:
    channels = {
        name: load_unindexed(artifact, name) if name in unindexed else load_release_channel(artifact, name)
        for name in channel_names(artifact)
    }
    return assemble(artifact, channels, text_encoder)
