from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.ids import IdMap
from recsys_ray.evaluation.ranks import REFIT, Ranks
from recsys_ray.evaluation.replay import FUSED, pool, replay
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import per_query

CONFIG = EvaluationConfig(bootstrap_samples=100)
USERS, ITEMS = IdMap(f"u{row}" for row in range(40)), IdMap(f"i{row}" for row in range(30))


@pytest.fixture(scope="module")
def replayed(make_retriever, make_questions):
    asked = [make_questions(seed, 20, 30) for seed in (0, 1)]
    test, refit = (pool([replay(make_retriever(s, 30), one, CONFIG) for one in asked]) for s in (0, 1))
    return test, refit, [one.targets for one in asked]


def test_what_was_saved_is_loaded(replayed, tmp_path):
    test, refit, asked = replayed
    ranks = Ranks.of(test, refit, asked, USERS, ITEMS)
    ranks.save(tmp_path / "ranks.parquet")
    loaded = Ranks.load(tmp_path / "ranks.parquet")
    assert loaded.ranks.keys() == {"first", "second", FUSED, f"first{REFIT}", f"second{REFIT}", f"fused{REFIT}"}
    for name, values in ranks.ranks.items():
        np.testing.assert_array_equal(loaded.ranks[name], values)  # halves and infinity are exact
    assert loaded.users.to_pylist() == [f"u{row}" for row in test.users[test.queries]]
    assert loaded.items.to_pylist() == [f"i{row}" for row in test.items]
    assert (loaded.num_items, loaded.asked_with) == (30, ranks.asked_with)
    assert loaded.describe() == f"{len(test.items)} items in 40 queries"


def test_metrics_by_query_are_those_of_the_replay(replayed):
    test, _, asked = replayed
    ranks = Ranks.of(test, None, asked, USERS, ITEMS)
    for metric in ("recall@10", "ndcg@10"):
        np.testing.assert_array_equal(ranks.per_query("first", metric), per_query(test, "first", metric))
    owners = ranks.user_of_query
    assert len(owners) == test.num_queries
    same = owners[:, None] == owners[None, :]
    np.testing.assert_array_equal(same, test.users[:, None] == test.users[None, :])


def test_the_digest_knows_ids_not_rows(replayed):
    test, _, asked = replayed
    digest = Ranks.of(test, None, asked, USERS, ITEMS).asked_with
    assert Ranks.of(test, None, asked, USERS, IdMap(f"j{row}" for row in range(30))).asked_with != digest
    shorter = [replace(targets, history=targets.history.last(1)) for targets in asked]
    assert Ranks.of(test, None, shorter, USERS, ITEMS).asked_with != digest
    turned = [
        replace(
            one,
            history=replace(one.history, values=29 - one.history.values),
            exclude=replace(one.exclude, values=29 - one.exclude.values),
        )
        for one in asked
    ]
    assert Ranks.of(test, None, turned, USERS, IdMap(reversed(ITEMS.ids))).asked_with == digest


def test_another_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        Ranks.load(tmp_path / "absent.parquet")
    pq.write_table(pa.table({"query": [1]}), tmp_path / "other.parquet")
    with pytest.raises(ArtifactError, match="evaluate again"):
        Ranks.load(tmp_path / "other.parquet")
