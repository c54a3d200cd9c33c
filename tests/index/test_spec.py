import json

import numpy as np
import pytest

from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import ExactIndex
from recsys_ray.index.faiss_index import FaissIndex
from recsys_ray.index.spec import IndexConfig, choose

pytest.importorskip("faiss")


def clustered(rows: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((20, 16))
    vectors = centres[rng.integers(0, 20, rows)] + 0.5 * rng.standard_normal((rows, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


VECTORS, HELD_OUT = clustered(3000, 1), clustered(60, 2)


def test_the_choice_holds_its_target_and_says_what_was_measured() -> None:
    choice = choose(VECTORS, HELD_OUT, IndexConfig(k=20, target_recall=0.95, exact_below=0))
    summary = choice.summary()
    json.dumps(summary)
    assert summary["recall"] >= 0.95
    assert {"exact", "SQfp16", "HNSW32"} <= {row["factory"] for row in summary["measured"]}
    chosen = choice.index.search(HELD_OUT, 20)[1]
    least = ExactIndex(VECTORS).search(HELD_OUT, 20)[1][:, -1:]
    assert (chosen >= least - 1e-5).mean() == pytest.approx(summary["recall"])
    holding = [row["queries_per_s"] for row in summary["measured"] if row["least_recall"] >= 0.95]
    assert summary["queries_per_s"] == max(holding)


def test_a_small_catalogue_stays_exact_and_still_gets_its_table() -> None:
    choice = choose(VECTORS, HELD_OUT, IndexConfig(k=20))
    assert isinstance(choice.index, ExactIndex)
    assert "exact_below" in choice.note
    assert len(choice.measured) > 3


def test_where_nothing_holds_the_target_it_says_so_and_searches_exactly() -> None:
    # Vectors without structure in many dimensions, far from the origin, are hard for every candidate.
    rng = np.random.default_rng(0)
    vectors = (1 + 0.01 * rng.standard_normal((6000, 64))).astype(np.float32)
    queries = rng.standard_normal((40, 64)).astype(np.float32)
    choice = choose(vectors, queries, IndexConfig(k=30, exact_below=0, target_recall=1.0))
    assert isinstance(choice.index, ExactIndex)
    assert "no candidate holds recall@30 >= 1.0" in choice.note


def test_a_given_factory_is_taken_and_measured() -> None:
    choice = choose(VECTORS, HELD_OUT, IndexConfig(factory="IVF8,Flat", parameters="nprobe=8", k=10))
    assert isinstance(choice.index, FaissIndex)
    assert [(row.factory, row.recall) for row in choice.measured] == [("IVF8,Flat", 1.0)]


def test_queries_that_say_nothing_do_not_count() -> None:
    config = IndexConfig(factory="IVF64,Flat", parameters="nprobe=1", k=10)
    expected = choose(VECTORS, HELD_OUT, config).measured[0].recall
    padded = np.concatenate([HELD_OUT, np.zeros((500, 16), np.float32)])
    assert choose(VECTORS, padded, config).measured[0].recall == expected < 1


@pytest.mark.parametrize("factory", ["auto", "exact"])
def test_parameters_without_a_factory_are_refused(factory: str) -> None:
    with pytest.raises(ConfigError, match=f"parameters only beside a FAISS factory string; factory={factory}"):
        IndexConfig.parse({"factory": factory, "parameters": "nprobe=4"}, "index")


def test_exact_needs_no_queries() -> None:
    assert choose(VECTORS, HELD_OUT[:0], IndexConfig(factory="exact")).summary()["recall"] == 1.0


def test_wrong_parameters_are_explained() -> None:
    with pytest.raises(ConfigError, match=r"index\.factory"):
        choose(VECTORS, HELD_OUT, IndexConfig(factory="Flat", parameters="nprobe=4"))
