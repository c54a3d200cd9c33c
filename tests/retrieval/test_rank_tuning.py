import numpy as np
import pytest

from recsys_ray.core import metrics
from recsys_ray.core.arrays import Ragged
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.fusion import Fusion, FusionConfig, combine
from recsys_ray.retrieval.rank_tuning import Known, add_ranker
from recsys_ray.retrieval.ranker import Ranker, log_popularity
from recsys_ray.retrieval.tuning import tune

N = 60
NOT_KNOWN = Known(np.zeros(0, np.float32))


def confident_or_not(count: int, seed: int) -> tuple[dict[str, Candidates], Ragged]:
    """Two channels that are right in turn, and say by how high their scores are whether it is their turn."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, N, count)
    turn = rng.random(count) < 0.5
    lists = {}
    for name, right in (("first", turn), ("second", ~turn)):
        scores = rng.random((count, N)).astype(np.float32)
        scores[np.arange(count)[right], targets[right]] = 1.0
        lists[name] = top_k(scores * np.where(right, 2.0, 1.0).astype(np.float32)[:, None], 20)
    return lists, Ragged.of([[target] for target in targets])


def noise(count: int, seed: int) -> tuple[dict[str, Candidates], Ragged]:
    rng = np.random.default_rng(seed)
    lists = {name: top_k(rng.random((count, N)).astype(np.float32), 20) for name in ("first", "second")}
    return lists, Ragged.of([[target] for target in rng.integers(0, N, count)])


def ndcg(lists: dict[str, Candidates], targets: Ragged, fusion: Fusion) -> float:
    found = combine(lists, fusion, 40).candidates
    ranks = metrics.list_ranks(found.rows, found.scores, targets.values)
    return float(metrics.METRICS["ndcg@10"](ranks, np.arange(len(targets)), len(targets)).mean())


@pytest.fixture(scope="module")
def learned() -> Fusion:
    lists, targets = confident_or_not(1500, 0)
    config = FusionConfig(depth=20, temperatures={})
    return add_ranker(tune(lists, targets, config), lists, targets, config, NOT_KNOWN)


def test_a_ranker_sees_when_a_channel_is_right(learned: Fusion) -> None:
    lists, targets = confident_or_not(500, 1)
    assert learned.ranker is not None
    weighted = learned.model_copy(update={"ranker": None})
    assert ndcg(lists, targets, learned) > 1.1 * ndcg(lists, targets, weighted)


def test_a_ranker_that_learns_nothing_is_not_kept() -> None:
    lists, targets = noise(600, 2)
    config = FusionConfig(depth=20)
    fusion = tune(lists, targets, config)
    assert add_ranker(fusion, lists, targets, config, NOT_KNOWN) == fusion
    assert add_ranker(fusion, lists, targets, FusionConfig(ranker=False), NOT_KNOWN) == fusion
    assert add_ranker(fusion, lists, targets, FusionConfig(ranker=True), NOT_KNOWN).ranker is not None


def test_few_queries_are_not_learned_from() -> None:
    lists, targets = confident_or_not(50, 3)
    config = FusionConfig(depth=20)
    assert add_ranker(tune(lists, targets, config), lists, targets, config, NOT_KNOWN).ranker is None


def test_it_is_the_same_every_time_and_survives_its_file(learned: Fusion, tmp_path) -> None:
    lists, targets = confident_or_not(1500, 0)
    config = FusionConfig(depth=20, temperatures={})
    assert add_ranker(tune(lists, targets, config), lists, targets, config, NOT_KNOWN) == learned
    learned.save(tmp_path / "fusion.json")
    loaded = Fusion.load(tmp_path / "fusion.json")
    first, second = (combine(lists, fusion, 10).candidates for fusion in (learned, loaded))
    np.testing.assert_array_equal(first.rows, second.rows)
    np.testing.assert_array_equal(first.scores, second.scores)


def test_one_query_is_ordered_as_in_a_batch_whatever_the_order_of_the_lists(learned: Fusion) -> None:
    lists, _ = confident_or_not(40, 4)
    batch = combine(lists, learned, 15).candidates
    for query in range(40):
        alone = {name: Candidates(c.rows[[query]], c.scores[[query]]) for name, c in reversed(lists.items())}
        found = combine(alone, learned, 15).candidates
        np.testing.assert_array_equal(found.rows[0], batch.rows[query])
        np.testing.assert_allclose(found.scores[0], batch.scores[query])


def test_the_list_of_the_only_channel_that_answers_keeps_its_order(learned: Fusion) -> None:
    lists, _ = confident_or_not(20, 5)
    nothing = Candidates.empty(20, 20)
    for asked in ({"first": lists["first"]}, {"first": lists["first"], "second": nothing}):
        found = combine(asked, learned, 20).candidates
        np.testing.assert_array_equal(found.rows, lists["first"].rows)


def test_scores_fall_and_those_in_order_are_above_one(learned: Fusion) -> None:
    lists, _ = confident_or_not(30, 6)
    scores = combine(lists, learned, 40).candidates.scores
    listed = np.isfinite(scores)
    assert (scores[:, 1:][listed[:, 1:]] <= scores[:, :-1][listed[:, 1:]]).all()
    assert (scores[listed] >= 1).all()


def test_all_channels_of_a_ranker_are_heard(learned: Fusion) -> None:
    silent = learned.model_copy(update={"weights": {"first": 1.0, "second": 0.0}})
    assert silent.silent == frozenset()
    assert silent.model_copy(update={"ranker": None}).silent == {"second"}


def test_popularity_survives_its_packing() -> None:
    counts = np.array([0, 1, 5, 1000, 10**6])
    lists, targets = confident_or_not(300, 7)
    popularity = log_popularity(np.resize(counts, N))
    config = FusionConfig(depth=20, ranker=True)
    ranker = add_ranker(tune(lists, targets, config), lists, targets, config, Known(popularity)).ranker
    assert isinstance(ranker, Ranker)
    np.testing.assert_array_equal(ranker.item_popularity, popularity)
    np.testing.assert_allclose(popularity[:5], np.log1p(counts), atol=0.5)


def test_the_trees_do_not_read_what_names_an_item() -> None:
    lists, targets = confident_or_not(400, 8)
    lists["everybody"] = Candidates(
        np.tile(np.arange(20), (400, 1)), np.tile(np.arange(20.0, 0, -1), (400, 1)).astype(np.float32)
    )
    config = FusionConfig(depth=20, ranker=True, temperatures={})
    known = Known(np.zeros(0, np.float32), frozenset({"everybody"}))
    fusion = add_ranker(tune(lists, targets, config), lists, targets, config, known)
    assert fusion.ranker is not None
    assert fusion.ranker.channels == ("first", "second")
    assert len(combine(lists, fusion, 30).candidates) == 400
