import numpy as np
import pytest

from recsys_ray.core import metrics
from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.candidates import Candidates, top_k
from recsys_ray.retrieval.fusion import FusionConfig, combine
from recsys_ray.retrieval.tuning import tune

Q, N = 300, 200


def make_lists(strengths: dict[str, float], seed: int = 0) -> tuple[dict[str, Candidates], Ragged]:
    """Channels that know the target by so much more than chance."""
    rng = np.random.default_rng(seed)
    targets = Ragged.of([rng.choice(N, rng.integers(1, 3), replace=False) for _ in range(Q)])
    lists = {}
    for name, strength in strengths.items():
        scores = rng.random((Q, N)).astype(np.float32)
        scores[targets.row_of_value, targets.values] += strength * rng.random(len(targets.values)).astype(np.float32)
        lists[name] = top_k(scores, 50)
    return lists, targets


def value(lists: dict[str, Candidates], targets: Ragged, fusion: object) -> float:
    fused = combine(lists, fusion, 200).candidates
    owner = targets.row_of_value
    ranks = metrics.list_ranks(fused.rows[owner], fused.scores[owner], targets.values)
    return float(
        np.mean([metrics.METRICS[m](ranks, owner, len(targets)).mean() for m in ("recall@10", "ndcg@10", "recall@100")])
    )


@pytest.mark.parametrize("method", ["weighted", "reciprocal_rank"])
def test_the_found_weights_beat_equal_ones_and_noise_counts_little(method: str) -> None:
    lists, targets = make_lists({"good": 1.5, "fair": 0.7, "noise": 0.0})
    config = FusionConfig(method=method, depth=50)
    found = tune(lists, targets, config)
    equal = tune(lists, targets, config.model_copy(update={"weights": dict.fromkeys(lists, 1.0)}))
    assert value(lists, targets, found) > value(lists, targets, equal)
    assert found.weights["noise"] < 0.5 * found.weights["good"]
    assert max(found.weights.values()) == 1.0
    assert tune(lists, targets, config) == found


def test_the_search_starts_from_the_best_single_channel_too() -> None:
    """From all channels alike it stops at .865 here: no single weight, changed alone, does better."""
    rng = np.random.default_rng(36)
    targets = Ragged.of([rng.choice(60, 3, replace=False) for _ in range(12)])
    lists = {}
    for place in range(5):
        scores = rng.random((12, 60)).astype(np.float32)
        scores[targets.row_of_value, targets.values] += 0.6 * rng.random(36).astype(np.float32)
        lists[f"channel {place}"] = top_k(scores, 40)
    found = tune(lists, targets, FusionConfig(method="reciprocal_rank", depth=40))
    assert value(lists, targets, found) > 0.9


def test_the_method_is_chosen_too() -> None:
    lists, targets = make_lists({"good": 1.5, "fair": 0.7})
    chosen = tune(lists, targets, FusionConfig(depth=50))
    both = [tune(lists, targets, FusionConfig(method=method, depth=50)) for method in ("weighted", "reciprocal_rank")]
    assert value(lists, targets, chosen) == max(value(lists, targets, fusion) for fusion in both)


def test_a_temperature_is_chosen_for_channels_that_are_scaled_by_it() -> None:
    lists, targets = make_lists({"nearest": 0.5, "other": 0.5})
    found = tune(lists, targets, FusionConfig(depth=50, method="weighted"))
    assert found.temperatures["nearest"] in FusionConfig().temperatures["nearest"]
    assert tune(lists, targets, FusionConfig(depth=50, method="reciprocal_rank")).temperatures == {}


def test_constant_scores_win_nothing_by_the_order_of_rows() -> None:
    """All targets are row 0; a channel that ties everything lists row 0 first and must not look strong."""
    rng = np.random.default_rng(0)
    targets = Ragged.of([[0] for _ in range(Q)])
    scores = rng.random((Q, N)).astype(np.float32)
    scores[:, 0] += 0.3
    lists = {"ties": top_k(np.ones((Q, N), np.float32), N), "real": top_k(scores, N)}
    found = tune(lists, targets, FusionConfig(depth=N))
    assert found.weights["real"] > 0
    assert value(lists, targets, found) >= value({"real": lists["real"]}, targets, found) - 1e-6


def test_given_weights_are_taken_and_must_name_the_channels() -> None:
    lists, targets = make_lists({"a": 1.0, "b": 1.0})
    assert tune(lists, targets, FusionConfig(weights={"a": 0.5, "b": 2.0})).weights == {"a": 0.5, "b": 2.0}
    with pytest.raises(ConfigError, match="exactly the channels: a, b"):
        tune(lists, targets, FusionConfig(weights={"a": 0.5}))
    with pytest.raises(ConfigError, match="one of them above"):
        tune(lists, targets, FusionConfig(weights={"a": 0.0, "b": 0.0}))


def test_there_must_be_something_to_choose_on() -> None:
    lists, _ = make_lists({"a": 1.0})
    with pytest.raises(ConfigError, match="no validation"):
        tune(lists, Ragged.empty(0), FusionConfig())


def test_an_unknown_objective_is_named() -> None:
    with pytest.raises(ConfigError, match=r"fusion\.objective.*recall@10"):
        FusionConfig.parse({"objective": {"luck": 1.0}}, "fusion")


def test_channels_without_any_candidate_keep_their_weights() -> None:
    empty = {name: Candidates.empty(2, 5) for name in ("a", "b")}
    assert set(tune(empty, Ragged.of([[0], [1]]), FusionConfig()).weights.values()) == {1.0}
