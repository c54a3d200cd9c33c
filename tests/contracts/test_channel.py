"""The laws of `retrieval/channel.py`, for every channel: add a case to `CASES` and it is held to them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.config import override
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.index.spec import IndexConfig
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import KINDS, ChannelConfig, fit_channel, load_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.ease import EaseConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space, ValidationPairs
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig
from recsys_ray.retrieval.channels.item_knn import ItemKnnConfig
from recsys_ray.retrieval.channels.matrix_factorisation import MatrixFactorisationConfig
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.channels.recent import RecentConfig
from recsys_ray.retrieval.channels.rp3beta import Rp3BetaConfig
from recsys_ray.retrieval.channels.trending import TrendingConfig
from recsys_ray.retrieval.channels.user_knn import UserKnnConfig
from recsys_ray.retrieval.query import Queries

NUM_ITEMS, NUM_USERS, DIM = 60, 80, 8
WORDS = np.array(["red", "blue", "green", "cotton", "silk", "shoe", "shirt", "hat", "long", "short", "warm", "light"])


def unit(rows: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_data(index: IndexConfig, start_us: int = 0) -> FitData:
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(NUM_USERS), rng.integers(1, 12, NUM_USERS))
    # Items from 50 on have no event: only channels that read content or vectors know them.
    rows = rng.integers(0, 50, len(users))
    events = Events.from_columns(
        users, rows, start_us + np.arange(len(users)) * 10**9, np.ones(len(users), np.float32), NUM_USERS, NUM_ITEMS
    )
    texts = [" ".join(rng.choice(WORDS, rng.integers(0, 5))) or None for _ in range(NUM_ITEMS)]
    colours = [[str(colour)] for colour in rng.choice(WORDS[:3], NUM_ITEMS)]
    released = [f"20{row % 20:02d}-01-31" if row % 3 else None for row in range(NUM_ITEMS)]
    items = pa.table(
        {"item_id": [str(row) for row in range(NUM_ITEMS)], "_text": texts, "colour": colours, "released": released}
    )
    space = Space("space-1", unit(NUM_ITEMS, 1), unit(40, 2))
    pairs = ValidationPairs(events.histories, events.histories, Ragged.of([[user % 50] for user in range(NUM_USERS)]))
    return FitData(events, items, Fields(categorical=("colour",)), {"towers": space, "text": space}, pairs, index)


EXACT = make_data(IndexConfig(factory="exact"))
APPROXIMATE = make_data(IndexConfig(factory="IVF4,Flat", parameters="nprobe=4"))
DATED = make_data(IndexConfig(factory="exact"), start_us=1_700_000_000_000_000)
CASES: dict[str, tuple[ChannelConfig, FitData]] = {
    "co_visitation": (CoVisitationConfig(), EXACT),
    "co_visitation, pruned": (CoVisitationConfig(neighbours=5, decay=1.0, history=3), EXACT),
    "content, TF-IDF": (ContentConfig(), EXACT),
    "content, words and vectors for texts": (ContentConfig(space="text"), EXACT),
    "content, half neural": (ContentConfig(space="text", mix=0.5), EXACT),
    "graph_embedding": (GraphEmbeddingConfig(dim=8, max_epochs=3), EXACT),
    "matrix_factorisation": (MatrixFactorisationConfig(dim=8, iterations=3), EXACT),
    "item_knn": (ItemKnnConfig(), EXACT),
    "item_knn, pruned": (ItemKnnConfig(neighbours=5, shrink=0, decay=1.0), EXACT),
    "rp3beta": (Rp3BetaConfig(), EXACT),
    "user_knn": (UserKnnConfig(), EXACT),
    "user_knn, few people": (UserKnnConfig(users=5, postings=3), EXACT),
    "ease": (EaseConfig(penalty=5), EXACT),
    "ease, local": (EaseConfig(penalty=5, memory_bytes=0, regressors=10), EXACT),
    "nearest, exact": (NearestConfig(), EXACT),
    "nearest, all lists of IVF": (NearestConfig(), APPROXIMATE),
    "popularity": (PopularityConfig(), EXACT),
    "recent": (RecentConfig(), DATED),
    "recent, by a field": (RecentConfig(field="released"), EXACT),
    "trending": (TrendingConfig(window=0.3, half_lives=2.0), DATED),
}
Make = Callable[[], Channel]


@pytest.fixture(params=CASES, scope="module")
def channel(request: pytest.FixtureRequest) -> Channel:
    config, data = CASES[request.param]
    if data is APPROXIMATE:
        pytest.importorskip("faiss")
    return fit_channel("mine", config, data)


def make_queries(seed: int, count: int = 12, share: float | None = None) -> Queries:
    rng = np.random.default_rng(seed)
    history = Ragged.of([rng.integers(0, NUM_ITEMS, rng.integers(0, 9)) for _ in range(count)])
    exclude = Ragged.of([[*history[query], *rng.integers(0, NUM_ITEMS, 3)] for query in range(count)])
    texts = tuple(" ".join(rng.choice(WORDS, 2)) if query % 3 == 0 else None for query in range(count))
    vectors = unit(count, seed + 100)
    vectors[1] = 0
    allowed = None
    if share is not None:  # two filters by turns, and every third question without
        subsets = tuple(Subset(rng.random(NUM_ITEMS) < part) for part in (share, share / 2))
        allowed = Allowed(subsets, np.arange(count) % 3 - 1)
    return Queries(history, exclude, texts, None, {"space-1": vectors}, allowed)


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_allclose(found.scores, expected.scores, rtol=1e-5, atol=1e-6)
    different = found.rows != expected.rows
    # Scores that differ by rounding alone (BLAS sums in another order) may change places.
    assert (
        not different.any()
        or np.abs(np.diff(expected.scores, axis=1)[different[:, 1:] | different[:, :-1]]).min() < 1e-5
    )


@pytest.mark.parametrize("share", [None, 0.5, 0.05, 0.0])
@pytest.mark.parametrize("k", [1, 7, NUM_ITEMS, NUM_ITEMS + 5])
def test_retrieve_is_the_top_k_of_scores(channel: Channel, k: int, share: float | None) -> None:
    queries = make_queries(k, share=share)
    assert_same(channel.retrieve(queries, k), top_k(channel.scores(queries), k))


def test_one_query_answers_as_in_a_batch(channel: Channel) -> None:
    queries = make_queries(3)
    batch = channel.retrieve(queries, 10)
    for query in range(len(queries)):
        one = channel.retrieve(queries.take(np.array([query])), 10)
        assert_same(one, Candidates(batch.rows[query : query + 1], batch.scores[query : query + 1]))


@pytest.mark.parametrize("share", [None, 0.4])
def test_nothing_excluded_or_forbidden_comes_back(channel: Channel, share: float | None) -> None:
    queries = make_queries(5, share=share)
    rows = channel.retrieve(queries, NUM_ITEMS).rows
    for query in range(len(queries)):
        found = set(rows[query][rows[query] >= 0].tolist())
        assert not found & set(queries.exclude[query].tolist())
        subset = None if queries.allowed is None else queries.allowed.of(query)
        assert subset is None or subset.mask[sorted(found)].all()


def test_scores_have_the_right_shape_and_no_nan(channel: Channel) -> None:
    scores = channel.scores(make_queries(1))
    assert scores.shape == (12, NUM_ITEMS)
    assert scores.dtype == np.float32
    assert not np.isnan(scores).any()
    assert not np.isposinf(scores).any()


@pytest.mark.parametrize("case", CASES)
def test_settings_read_at_query_time_need_no_new_fit(case: str) -> None:
    config, data = CASES[case]
    channel, queries = fit_channel("mine", config, data), make_queries(4)
    for setting in config.search.keys() & KINDS[config.kind].at_query:
        for value in config.search[setting]:
            changed = override(config, {setting: value})
            expected = fit_channel("mine", changed, data).scores(queries)
            np.testing.assert_array_equal(replace(channel, config=changed).scores(queries), expected)


def test_save_then_load_answers_the_same(channel: Channel, tmp_path: Path) -> None:
    queries = make_queries(9)
    channel.save(tmp_path)
    loaded = load_channel(tmp_path)
    assert (loaded.name, loaded.reads) == ("mine", channel.reads)
    assert_same(loaded.retrieve(queries, 20), channel.retrieve(queries, 20))
    np.testing.assert_allclose(loaded.scores(queries), channel.scores(queries), rtol=1e-6)


def test_a_question_without_anything_it_reads_gets_no_candidates(channel: Channel) -> None:
    nothing = Queries(Ragged.empty(2), Ragged.empty(2), (None, None))
    found = channel.retrieve(nothing, 5)
    assert found.rows.shape == (2, 5)
    assert (found.rows >= 0).any() == (not channel.reads)


def test_no_queries_at_all(channel: Channel) -> None:
    none = Queries(Ragged.empty(0), Ragged.empty(0), (), None, {"space-1": np.zeros((0, DIM), np.float32)})
    assert channel.retrieve(none, 5).rows.shape == (0, 5)
    assert channel.scores(none).shape == (0, NUM_ITEMS)
