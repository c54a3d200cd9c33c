"""The canary of a release: questions that are recorded with their answers when it is published, and asked again later.

What loads without an error may still answer wrongly: an index of other vectors, two tables exchanged, ids in another
order. The canary says so, also where a manifest was made to fit the broken files.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from recsys_ray.core.arrays import IntArray, Ragged
from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.fusion import combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.retriever import Retriever

if TYPE_CHECKING:
    from recsys_ray.retrieval.release import Release

CANARY_FILE = "canary.json"
FUSED = "fused"
LIST_LENGTH = 20
RECALL_AT = 100
MAX_RECALL_LOSS = 0.01
MIN_OVERLAP = 0.95  # other processors round otherwise, and candidates of nearly equal scores change places
_SEED = 20
_HISTORIES, _TEXTS, _HISTORY_LENGTH = 64, 8, 50
_ORACLE_BLOCK = 8
_TIE = 1e-6


@dataclass(frozen=True)
class Answers:
    """What a release answers.

    Attributes:
        items_digest: Of the catalogue's ids in row order.
        lists: "fused", and each channel, to a list of item ids a question, best first.
        recall: Nearest channel to the recall of its index against exact search, at most `RECALL_AT` deep.
    """

    items_digest: str
    lists: dict[str, list[list[str]]]
    recall: dict[str, float]


@dataclass(frozen=True)
class Canary:
    """Questions, and what the release answered when it was published.

    Attributes:
        histories: Item ids of some users, oldest first.
        texts: Titles of some items; empty where no channel reads texts.
        answers: To the histories, then to the texts.
    """

    histories: list[list[str]]
    texts: list[str]
    answers: Answers

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Canary":
        """Read what `save` wrote.

        Raises:
            ArtifactError: When it is missing or something else.
        """
        try:
            values = json.loads(path.read_text())
            return cls(values["histories"], values["texts"], Answers(**values["answers"]))
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None


def record(release: "Release") -> Canary:
    """Choose questions, the same for the same release, and ask them."""
    rng = np.random.default_rng(_SEED)
    histories = release.histories
    users = np.flatnonzero(np.diff(histories.events.offsets) > 0)
    chosen = [histories.user_ids.external(user) for user in _some(users, _HISTORIES, rng)]
    asked = [histories.get(user)[-_HISTORY_LENGTH:] for user in chosen]
    texts = [title for row in _some(np.arange(len(release.titles)), _TEXTS, rng) if (title := release.titles[row])]
    if not texts or not release.question(text=texts[0]).channels:
        texts = []
    return Canary(asked, texts, ask(release, asked, texts))


def ask(release: "Release", histories: list[list[str]], texts: list[str]) -> Answers:
    """The release's answers to the questions of a canary; each kind is asked in one batch."""
    by_channel: dict[str, list[list[str]]] = {name: [] for name in (FUSED, *release.retriever.channels)}
    recall = {}
    if histories:
        found = [release.catalogue.history_rows(items) for items in histories]
        queries = release.retriever.encode(Queries.of_histories(Ragged.of([rows[rows >= 0] for rows in found])))
        _add(by_channel, release, release.retriever, queries)
        recall = _recall(release.retriever, queries)
    if texts:
        question = release.question(text=texts[0])
        retriever = release.retriever.only(list(question.channels), release.fusion_for(question))
        _add(by_channel, release, retriever, retriever.encode(Queries.of_texts(tuple(texts))))
    return Answers(_digest(release.item_ids.ids), by_channel, recall)


def require(release: "Release", canary: Canary) -> None:
    """Ask again, and compare.

    Raises:
        ArtifactError: When an answer is not what was recorded, up to rounding, or an index finds less.
    """
    then, now = canary.answers, ask(release, canary.histories, canary.texts)
    if now.items_digest != then.items_digest:
        raise ArtifactError("its items are others than when it was published, or in another order")
    for name, recorded in then.recall.items():
        found = now.recall.get(name, 0.0)
        if found < recorded - MAX_RECALL_LOSS:
            raise ArtifactError(
                f"channel {name!r}: its index finds {found:.3f} of what exact search finds; {recorded:.3f} were "
                f"recorded when it was published, and at most {MAX_RECALL_LOSS} less is let through"
            )
    for name in {**then.lists, **now.lists}:
        share = overlap(then.lists.get(name, []), now.lists.get(name, []))
        if share < MIN_OVERLAP:
            lists = "the fused lists" if name == FUSED else f"the lists of channel {name!r}"
            raise ArtifactError(
                f"{lists} hold {share:.1%} of the candidates that were recorded when it was published; "
                f"{MIN_OVERLAP:.0%} are needed"
            )


def overlap(then: list[list[str]], now: list[list[str]]) -> float:
    """The mean share of what each recorded list and its new one have in common, of the longer of the two."""
    if len(then) != len(now):
        return 0.0
    shares = [len(set(a) & set(b)) / max(len(a), len(b)) for a, b in zip(then, now, strict=True) if a or b]
    return float(np.mean(shares)) if shares else 1.0


def _some(values: IntArray, count: int, rng: np.random.Generator) -> list[int]:
    some: list[int] = rng.choice(values, min(count, len(values)), replace=False).tolist()
    return some


def _add(by_channel: dict[str, list[list[str]]], release: "Release", retriever: Retriever, queries: Queries) -> None:
    """Put the lists that encoded questions get behind those that are there."""
    lists = retriever.retrieve(queries, max(LIST_LENGTH, retriever.fusion.depth))
    for name, found in lists.items():
        by_channel[name] += _external(release, found)
    by_channel[FUSED] += _external(release, combine(lists, retriever.fusion, LIST_LENGTH).candidates)


def _external(release: "Release", found: Candidates) -> list[list[str]]:
    rows = found.first(LIST_LENGTH).rows
    return [release.item_ids.externals(line[line >= 0]) for line in rows]


def _recall(retriever: Retriever, queries: Queries) -> dict[str, float]:
    # With nothing to leave out the index itself answers; else exact search may be the cheaper way.
    queries = replace(queries, exclude=Ragged.empty(len(queries)))
    channels = {name: channel for name, channel in retriever.channels.items() if isinstance(channel, NearestChannel)}
    return {name: round(_recall_of(channel, queries), 6) for name, channel in channels.items()}


def _recall_of(channel: NearestChannel, queries: Queries) -> float:
    """The share of results that are as good as the true ones; 1 where no question has a vector."""
    k = min(RECALL_AT, len(channel.index.vectors))
    good = wanted = 0
    for start in range(0, len(queries), _ORACLE_BLOCK):
        block = queries.take(np.arange(start, min(start + _ORACLE_BLOCK, len(queries))))
        true, found = top_k(channel.scores(block), k), channel.retrieve(block, k)
        # Results are scored exactly, so one as good as the last true one is right, whichever twin it is.
        least = np.where(np.isfinite(true.scores), true.scores, np.inf).min(1, keepdims=True)
        wanted += int((true.rows >= 0).sum())
        good += int(((found.rows >= 0) & (found.scores >= least - _TIE)).sum())
    return good / wanted if wanted else 1.0


def _digest(ids: list[str]) -> str:
    return hashlib.sha256("\0".join(ids).encode()).hexdigest()
