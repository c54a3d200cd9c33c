import numpy as np
import pytest

from recsys_ray.core.arrays import FloatArray, Ragged
from recsys_ray.core.errors import ConfigError, SpaceError
from recsys_ray.index.exact import ExactIndex
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.channels.unpersonalised import UnpersonalisedChannel
from recsys_ray.retrieval.fusion import Fusion, combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder
from recsys_ray.retrieval.retriever import Retriever

N = 20
VECTORS: FloatArray = np.random.default_rng(0).standard_normal((N, 4)).astype(np.float32)
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
COUNTS = np.arange(N, dtype=np.float32)
NEAREST = NearestChannel("near", NearestConfig(), "frozen", ExactIndex(VECTORS), {})
POPULAR = UnpersonalisedChannel("top", PopularityConfig(), COUNTS, np.arange(N - 1, 0, -1))
ENCODER = FrozenQueryEncoder("text", VECTORS, "frozen", 4, lambda _: None, decay=0.5)
FUSION = Fusion(weights={"near": 1.0, "top": 0.2}, depth=6)


def test_recommend_is_encode_retrieve_combine() -> None:
    retriever = Retriever({"near": NEAREST, "top": POPULAR}, (ENCODER,), FUSION)
    queries = Queries.of_histories(Ragged.of([[1, 2], [], [3]]))
    lists = retriever.retrieve(retriever.encode(queries))
    assert {name: found.rows.shape for name, found in lists.items()} == {"near": (3, 6), "top": (3, 6)}
    found = retriever.recommend(queries, 5).candidates
    assert (found.rows == combine(lists, FUSION, 5).candidates.rows).all()
    assert found.rows[1].tolist() == [19, 18, 17, 16, 15]


def test_more_results_than_the_depth_ask_the_channels_deeper() -> None:
    retriever = Retriever({"top": POPULAR}, (), FUSION)
    assert (retriever.recommend(Queries.of_histories(Ragged.of([[1]])), 15).candidates.rows >= 0).all()


def test_a_frozen_space_reads_a_history_as_its_decayed_mean() -> None:
    vector = ENCODER.encode(Queries.of_histories(Ragged.of([[4, 7]])))["frozen"][0]
    expected = 0.5 * VECTORS[4] + VECTORS[7]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_a_space_without_encoder_is_refused_at_once() -> None:
    with pytest.raises(SpaceError, match="'near' searches space frozen; queries are encoded in: none"):
        Retriever({"near": NEAREST}, (), FUSION)


def test_a_channel_without_weight_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"missing \['other'\]"):
        Retriever({"other": POPULAR}, (), FUSION)


def test_only_some_channels() -> None:
    retriever = Retriever({"near": NEAREST, "top": POPULAR}, (ENCODER,), FUSION).only(["top"])
    assert list(retriever.retrieve(Queries.of_histories(Ragged.of([[1]])))) == ["top"]
