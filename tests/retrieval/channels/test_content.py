from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channel_tuning import ChannelTuningConfig, tune_channel
from recsys_ray.retrieval.channels import content
from recsys_ray.retrieval.channels.content import ContentChannel, ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space, ValidationPairs
from recsys_ray.retrieval.query import Queries

N = 40


def make_data(words_help: bool, vectors_help: bool) -> FitData:
    """Items come in pairs (0 and 1, 2 and 3, …); words or vectors tell the pairs, or nothing."""
    rng = np.random.default_rng(0)
    pair = np.arange(N) // 2
    texts = [f"w{pair[row] if words_help else rng.integers(0, 3)}" for row in range(N)]
    centres = rng.standard_normal((N, 16))
    vectors = (centres[pair] if vectors_help else rng.standard_normal((N, 16))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    items = pa.table({"item_id": [str(row) for row in range(N)], "_text": texts})
    zeros = np.zeros(0, np.int64)
    events = Events(np.zeros(2, np.int64), zeros, zeros, np.zeros(0, np.float32), N)
    history = Ragged.of([[row] for row in range(N)])
    pairs = ValidationPairs(history, history, Ragged.of([[row ^ 1] for row in range(N)]))
    return FitData(events, items, Fields(), {"text": Space("frozen", vectors, vectors[:4])}, pairs)


def tuned(data: FitData) -> ContentChannel:
    config = ContentConfig(space="text", max_share=1.0)
    channel, _ = tune_channel("content", config, data, ChannelTuningConfig(), lambda _: None)
    assert isinstance(channel, ContentChannel)
    return channel


def test_validation_chooses_words_where_they_say_more() -> None:
    assert tuned(make_data(True, False)).config.mix < 0.5


def test_validation_chooses_vectors_where_they_say_more() -> None:
    channel = tuned(make_data(False, True))
    assert channel.config.mix > 0.5
    found = channel.retrieve(Queries.of_histories(Ragged.of([[4], [7]])), 1).rows
    assert found.tolist() == [[5], [6]]


def test_where_the_run_has_no_vectors_only_words_are_searched() -> None:
    data = replace(make_data(True, False), spaces={})
    channel, facts = tune_channel("content", ContentConfig(), data, ChannelTuningConfig(), lambda _: None)
    assert (channel.config.space, channel.neural) == (None, None)
    assert [one["value"] for one in facts["tuning"]["tried"]["mix"]] == [0.0]


def test_of_items_as_like_the_better_known_comes_first() -> None:
    data = make_data(True, False)
    events = Events(np.array([0, 3, 4]), np.array([1, 1, 3, 3]), np.arange(4), np.ones(4, np.float32), N)
    channel = content.fit("c", ContentConfig(space=None, max_share=1.0, popularity=0.5), replace(data, events=events))
    plain = replace(channel, config=override(channel.config, {"popularity": 0.0}))
    queries = Queries.of_histories(Ragged.of([[0, 2], [4]]), Ragged.empty(2))
    expected = np.array(plain.scores(queries))
    expected[:, 1] *= np.sqrt(3)
    expected[:, 3] *= np.sqrt(3)
    np.testing.assert_allclose(channel.scores(queries), expected, rtol=1e-6)
    asked = Queries.of_texts(("w0 w1",))
    np.testing.assert_array_equal(channel.scores(asked), plain.scores(asked))


def test_a_vector_of_the_text_counts_beside_the_history() -> None:
    data = make_data(False, True)
    channel = content.fit("content", ContentConfig(space="text", mix=1.0), data)
    queries = Queries.of_texts(("unknown",)).with_vectors({"frozen": data.spaces["text"].vectors[8:9]})
    assert set(channel.retrieve(queries, 2).rows[0].tolist()) == {8, 9}


def test_a_space_that_the_run_lacks_is_named() -> None:
    with pytest.raises(ConfigError, match=r"channels\.c\.space: got 'image'; allowed: text"):
        content.fit("c", ContentConfig(space="image"), make_data(True, True))


def test_items_that_say_nothing_have_no_content() -> None:
    data = make_data(words_help=True, vectors_help=False)
    silent = replace(data, items=data.items.set_column(1, "_text", pa.array([None] * N, pa.string())), spaces={})
    with pytest.raises(NotApplicable, match="needs items with texts or categorical values"):
        content.fit("content", ContentConfig(), silent)


def test_a_mix_without_a_space_is_refused() -> None:
    with pytest.raises(ConfigError, match="a space beside mix"):
        ContentConfig.parse({"space": None, "mix": 0.5})


def test_a_question_by_text_alone_has_a_mix_of_its_own() -> None:
    data = make_data(True, True)
    channel = content.fit("c", ContentConfig(space="text", mix=0.0, text_mix=1.0), data)
    wanted = data.spaces["text"].vectors[3:4]
    asked = Queries.of_texts(("whatever",)).with_vectors({data.spaces["text"].id: wanted})
    best = data.spaces["text"].vectors @ wanted[0]
    assert channel.retrieve(asked, 1).rows[0, 0] == int(best.argmax())
    by_history = Queries.of_histories(Ragged.of([[3]])).with_vectors({data.spaces["text"].id: wanted})
    assert channel.scores(by_history).tolist() == replace(channel, neural=None).scores(by_history).tolist()
