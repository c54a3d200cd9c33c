from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys_ray.core.arrays import Ragged
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training import validation as validation_module
from recsys_ray.training.data import TrainInput, Validation
from recsys_ray.training.validation import item_vectors, subsample, validate

CPU = torch.device("cpu")


def by_hand(towers: TwoTower, data: TrainInput, queries: Validation) -> dict[str, float]:
    """The metrics one query and one target at a time."""
    towers.eval()
    with torch.no_grad():
        items = towers.item_tower(data.inputs)
        sums = np.zeros(3)
        for query in range(len(queries)):
            history = torch.from_numpy(queries.history[query].copy())[None]
            vector = towers.user_tower(items[history], history >= 0, None)[0, -1]
            scores = items @ vector
            scores[torch.from_numpy(queries.exclude[query].copy())] = -torch.inf
            targets = queries.items[query]
            ranks = np.array([int((scores > scores[t]).sum()) if torch.isfinite(scores[t]) else 10**9 for t in targets])
            ideal = sum(1 / np.log2(np.arange(min(10, len(targets))) + 2))
            found = ranks[ranks < 10]
            sums += [sum(1 / np.log2(found + 2)) / ideal, (ranks < 10).mean(), (ranks < 100).mean()]
    return dict(zip(("ndcg@10", "recall@10", "recall@100"), sums / len(queries), strict=True))


@pytest.mark.parametrize("block", [1 << 22, 80])
def test_full_ranking_equals_the_one_by_hand(
    towers: TwoTower, data: TrainInput, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation_module, "_BLOCK_SCORES", block)
    assert data.validation is not None
    histories = data.validation.history
    several = Ragged.of([[(row * 7) % 40, (row * 3 + 1) % 40][: 1 + row % 2] for row in range(30)])
    queries = replace(data.validation, items=several, exclude=histories)
    items = item_vectors(towers.eval(), data, CPU, (0, 1))
    found = validate(towers, items, data, queries, (0, 1))
    assert found == pytest.approx(by_hand(towers, data, queries), abs=1e-6)


def test_a_query_without_a_history_is_ranked_too(towers: TwoTower, data: TrainInput) -> None:
    none = Validation(np.array([0]), Ragged.empty(1), Ragged.empty(1), Ragged.of([[5]]))
    items = item_vectors(towers, data, CPU, (0, 1))
    assert validate(towers, items, data, none, (0, 1))["recall@100"] == 1.0


def test_a_sample_of_the_queries_is_always_the_same(data: TrainInput) -> None:
    assert data.validation is not None
    some = subsample(data.validation, 7, seed=1)
    assert len(some) == 7
    np.testing.assert_array_equal(some.users, subsample(data.validation, 7, seed=1).users)
    assert subsample(data.validation, 30, seed=1) is data.validation
