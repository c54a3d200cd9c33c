from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.config import override
from recsys_ray.retrieval.channels.graph_embedding import NormalisedSum, degree_scale
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig
from recsys_ray.retrieval.channels.graph_training import Batch, Graph, WeightedSums, softmax_loss, train
from recsys_ray.retrieval.channels.table import SparseRows

NUM_USERS, NUM_ITEMS, DIM = 30, 20, 4
CONFIG = GraphEmbeddingConfig(dim=DIM, batch_users=8, max_epochs=6, patience=2)


def random_matrix() -> sp.csr_matrix:
    seen = np.random.default_rng(0).random((NUM_USERS, NUM_ITEMS)) < 0.25
    seen[3], seen[:, 7] = False, False
    return sp.csr_matrix(seen.astype(np.float32))


def graph_of(seen: sp.csr_matrix) -> Graph:
    return Graph.of(seen, degree_scale(np.asarray(seen.sum(0), np.float32).ravel()))


def vectors(seed: int, rows: int = NUM_ITEMS) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, DIM)).astype(np.float32))


def mean_layers(seen: sp.csr_matrix, items: torch.Tensor, num_layers: int) -> tuple[np.ndarray, np.ndarray]:
    """LightGCN as its paper has it, on the dense graph, users starting from zero: mean layers of users and items."""
    adjacency = np.zeros((NUM_USERS + NUM_ITEMS,) * 2)
    adjacency[:NUM_USERS, NUM_USERS:] = seen.toarray()
    adjacency += adjacency.T
    scale = np.maximum(adjacency.sum(1), 1) ** -0.5
    adjacency = scale[:, None] * adjacency * scale
    layers = [np.concatenate([np.zeros((NUM_USERS, DIM)), items.numpy()])]
    for _ in range(num_layers):
        layers.append(adjacency @ layers[-1])
    mean = np.mean(layers, axis=0)
    return mean[:NUM_USERS], mean[NUM_USERS:]


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def test_weighted_sums_are_the_matrix_product() -> None:
    matrix = sp.random(9, NUM_ITEMS, 0.3, format="csr", rng=1, dtype=np.float32)
    np.testing.assert_allclose((WeightedSums.of(matrix) @ vectors(1)).numpy(), matrix @ vectors(1).numpy(), atol=1e-6)


@pytest.mark.parametrize("hops", [0, 1, 2])
def test_items_and_folded_users_are_lightgcn_whose_users_start_from_zero(hops: int) -> None:
    seen, free = random_matrix(), vectors(1)
    graph = graph_of(seen)
    users, items = mean_layers(seen, free, 2 * hops + 1)
    found = graph.propagate(free, hops).numpy()
    # The mean over items counts the layers that reached them, the paper's mean all: a factor that ranks nothing.
    np.testing.assert_allclose(found, 2 * items, atol=1e-5)
    ones = np.ones(len(graph.histories.values), np.float32)
    folded = NormalisedSum(found, graph.scale)(SparseRows(graph.histories, ones))
    np.testing.assert_allclose(folded, unit(users), atol=1e-5)


def test_a_gradient_goes_back_through_the_graph_by_going_through_it() -> None:
    graph = graph_of(random_matrix())
    first, second = vectors(1), vectors(2)
    one_way = (first * graph.propagate(second, 2)).sum()
    torch.testing.assert_close((graph.propagate(first, 2) * second).sum(), one_way)


@given(st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=2, max_size=9, unique=True), min_size=1, max_size=6))
def test_a_batch_parts_each_history_and_knows_which_negatives_were_met(rows: list[list[int]]) -> None:
    known = np.unique(np.concatenate([[1, 3, 5, 8], *rows]))
    config = override(CONFIG, {"negatives": 6})
    batch = Batch.draw(Ragged.of(rows), known, config, np.random.default_rng(len(rows)))
    assert len(batch.negatives) == min(6, len(known))
    assert set(batch.negatives) <= set(known)
    assert batch.share == pytest.approx(len(batch.negatives) / len(known))
    for user, row in enumerate(rows):
        inputs, targets = batch.inputs[user].tolist(), batch.targets[user].tolist()
        assert sorted(inputs + targets) == sorted(row)
        assert inputs
        assert targets
        assert batch.met[user].tolist() == [item in row for item in batch.negatives]


def test_with_all_negatives_the_loss_is_the_cross_entropy_over_what_a_user_could_be_shown() -> None:
    items, graph = functional.normalize(vectors(3)), graph_of(random_matrix())
    scale = torch.from_numpy(graph.scale)
    histories = graph.histories.take(np.flatnonzero(graph.histories.lengths >= 2))
    known = np.flatnonzero(graph.scale)
    batch = Batch.draw(histories, known, override(CONFIG, {"negatives": 100}), np.random.default_rng(5))
    expected = []
    for user in range(len(histories)):
        inputs = torch.from_numpy(batch.inputs[user])
        query = functional.normalize((scale[inputs, None] * items[inputs]).sum(0), dim=0)
        shown = np.setdiff1d(known, inputs)
        log_shares = torch.log_softmax(items[shown] @ query / 0.2, 0)
        expected += [-log_shares[np.flatnonzero(shown == target)[0]] for target in batch.targets[user]]
    torch.testing.assert_close(softmax_loss(items, scale, batch, 0.2), torch.stack(expected).mean())


def test_drawn_negatives_stand_for_all_without_bias() -> None:
    items, graph = functional.normalize(vectors(3)), graph_of(random_matrix())
    histories, known = graph.histories.take(np.array([0])), np.flatnonzero(graph.scale)
    rng = np.random.default_rng(6)
    scale = torch.from_numpy(graph.scale)
    whole = Batch.draw(histories, known, override(CONFIG, {"negatives": 100}), rng)

    def total(batch: Batch) -> float:
        """The sum that the first target is divided by, out of the loss of it alone."""
        one = replace(batch, inputs=whole.inputs, targets=Ragged.of([whole.targets[0][:1]]))
        query = functional.normalize((scale[one.inputs[0], None] * items[one.inputs[0]]).sum(0), dim=0)
        return float(torch.exp(softmax_loss(items, scale, one, 1.0) + items[one.targets[0][0]] @ query))

    few = override(CONFIG, {"negatives": 5})
    drawn = [total(Batch.draw(histories, known, few, rng)) for _ in range(2000)]
    assert np.mean(drawn) == pytest.approx(total(whole), abs=5 * np.std(drawn) / np.sqrt(2000))


def test_a_seed_gives_the_same_bits_and_another_one_others() -> None:
    graph, config = graph_of(random_matrix()), override(CONFIG, {"epochs": 2})
    first, second = train(graph, config, None), train(graph, config, None)
    np.testing.assert_array_equal(first[0], second[0])
    assert np.abs(train(graph, override(config, {"seed": 1}), None)[0] - first[0]).max() > 0.01
    assert not first[0][7].any()  # nobody met it


def test_training_stops_where_the_judge_is_content() -> None:
    graph = graph_of(random_matrix())
    answers = iter([0.1, 0.2, 0.5, 0.4, 0.3, 0.9])
    found, epochs = train(graph, CONFIG, lambda _: next(answers))
    assert epochs == 3
    assert list(answers) == [0.9]
    again = train(graph, override(CONFIG, {"epochs": 3}), lambda _: pytest.fail("the settings say when to stop"))
    np.testing.assert_array_equal(found, again[0])
    assert again[1] == 3
