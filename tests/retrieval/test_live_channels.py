"""Channels over changes against the same channel whose base holds the changed items."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import scipy.sparse as sp

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.index.live import Present
from recsys_ray.index.spec import IndexConfig
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.content import ContentChannel, ContentConfig, Neural
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.channels.tfidf import documents
from recsys_ray.retrieval.live_channels import LiveChannel, LiveContent
from recsys_ray.retrieval.query import Queries

BASE, TOTAL, DIM = 40, 50, 6
WORDS = np.array(["red", "blue", "green", "cotton", "silk", "shoe", "shirt", "hat", "long", "short"])
FIELDS = Fields(categorical=("colour",))
REMOVED = np.array([3, 11, 45])


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_items(seed: int, count: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 5))) or None for _ in range(count)]
    return pa.table({"_text": texts, "colour": [[str(colour)] for colour in rng.choice(WORDS[:3], count)]})


def make_data() -> FitData:
    rng = np.random.default_rng(0)
    users, rows = np.repeat(np.arange(30), 6), rng.integers(0, BASE, 180)
    ones = np.ones(180, np.float32)
    events = Events.from_columns(users, rows, np.arange(180), ones, 30, BASE)
    space = Space("space-1", unit(BASE, 1), unit(5, 2))
    return FitData(events, make_items(1, BASE), FIELDS, {"text": space}, None, IndexConfig(factory="exact"))


def changed(base: ContentChannel) -> tuple[LiveContent, ContentChannel]:
    """The live channel after three batches, and the same items in one channel."""
    rows = np.array([2, 7, *range(BASE, TOTAL)])
    table, vectors = make_items(3, len(rows)), unit(len(rows), 4)
    terms = base.tfidf.of_documents(list(documents(table, FIELDS, base.config.attribute_words)))
    new = sp.csr_matrix((terms.values, terms.columns.values, terms.columns.offsets), (len(rows), len(base.tfidf.terms)))
    live, nothing = LiveContent.over(base), np.zeros(0, np.int64)
    for start, stop in ((6, len(rows)), (0, 6)):
        some = base.tfidf.of_documents(list(documents(table.slice(start, stop - start), FIELDS, True)))
        live = live.put(rows[start:stop], some, vectors[start:stop] if base.neural else None, nothing)
    live = live.put(nothing, base.tfidf.of_documents([]), vectors[:0] if base.neural else None, REMOVED)
    matrix = sp.vstack([base.tfidf.items.matrix(), sp.csr_matrix((TOTAL - BASE, len(base.tfidf.terms)))]).tolil()
    matrix[rows] = new
    matrix[REMOVED] = 0
    counts = np.concatenate([base.counts, np.zeros(TOTAL - BASE, np.float32)])
    neural = None
    if base.neural is not None:
        everything = np.zeros((TOTAL, DIM), np.float32)
        everything[:BASE] = base.neural.vectors
        everything[rows] = vectors
        everything[REMOVED] = 0
        neural = Neural(base.neural.space_id, everything)
    tfidf = base.tfidf.with_items(sp.csr_matrix(matrix, dtype=np.float32))
    return live, replace(base, tfidf=tfidf, counts=counts, neural=neural)


def make_queries(count: int, share: float | None) -> Queries:
    rng = np.random.default_rng(5)
    kept = np.setdiff1d(np.arange(TOTAL), REMOVED)
    history = Ragged.of([rng.choice(kept, rng.integers(0, 7)) for _ in range(count)])
    exclude = Ragged.of([[*history[query], *rng.integers(0, TOTAL, 3)] for query in range(count)])
    texts = tuple(" ".join(rng.choice(WORDS, 2)) if query % 2 else None for query in range(count))
    allowed = None if share is None else Allowed.everywhere(Subset(rng.random(TOTAL) < share), count)
    return Queries(history, exclude, texts, None, {"space-1": unit(count, 6)}, allowed)


CONFIGS = {
    "words": ContentConfig(space=None),
    "words, vectors for texts": ContentConfig(space="text"),
    "half vectors": ContentConfig(space="text", mix=0.5),
}


@pytest.mark.parametrize("share", [None, 0.4])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_content_scores_what_was_put_as_if_it_had_been_there(config: ContentConfig, share: float | None) -> None:
    base = fit_channel("mine", config, make_data())
    assert isinstance(base, ContentChannel)
    live, expected = changed(base)
    queries = make_queries(10, share)
    np.testing.assert_allclose(live.scores(queries), expected.scores(queries), rtol=1e-5)
    for asked in (queries, *(queries.take(np.array([query])) for query in range(len(queries)))):
        found, wanted = live.retrieve(asked, 12), expected.retrieve(asked, 12)
        np.testing.assert_allclose(found.scores, wanted.scores, rtol=1e-5)
        assert (found.rows == wanted.rows).mean() > 0.95  # rounding alone may swap equal scores
        assert not set(REMOVED) & set(found.rows.ravel().tolist())


def test_channels_of_counts_lose_what_is_deleted_and_get_it_back() -> None:
    base = fit_channel("top", PopularityConfig(), make_data())
    queries = Queries(Ragged.of([[1, TOTAL]]), Ragged.of([[1, TOTAL]]), (None,))
    before = base.retrieve(Queries(Ragged.of([[1]]), Ragged.of([[1]]), (None,)), BASE)
    best = before.rows[0, :2]
    live = LiveChannel(base, Present(BASE).without(best))
    assert (live.name, live.reads) == (base.name, base.reads)
    np.testing.assert_array_equal(live.retrieve(queries, 5).rows, before.rows[:, 2:7])
    back = replace(live, present=live.present.holding(best))
    np.testing.assert_array_equal(back.retrieve(queries, 5).rows, before.rows[:, :5])
