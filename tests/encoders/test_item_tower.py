import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_ray.core.schema import Fields, NumericField
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_tower import hide
from recsys_ray.encoders.two_tower import TwoTower, build

FIELDS = Fields(
    numeric={"price": NumericField(mean=0, std=1)},
    vectors={"sound.mean": 5},
    tokens={"colour=red": 1, "colour=blue": 2},
)
MODALITIES = ("text", "image", "vectors:sound.mean", "attributes", "id")


def make_model() -> TwoTower:
    return build(TwoTowerConfig(dim=8), FIELDS, 20, {"text": 6, "image": 7}).eval()


def make_inputs(present: Tensor) -> ItemInputs:
    """One row of `present` (n, M) an item."""
    count = len(present)
    values = {
        "text": {"vector": torch.randn(count, 6)},
        "image": {"vector": torch.randn(count, 7)},
        "vectors:sound.mean": {"vector": torch.randn(count, 5)},
        "attributes": {"tokens": torch.randint(0, 3, (count, 4), dtype=torch.int32), "numeric": torch.randn(count, 1)},
        "id": {"row": torch.arange(count)},
    }
    return ItemInputs(values, {name: present[:, column] for column, name in enumerate(MODALITIES)})


def spoil(inputs: ItemInputs) -> ItemInputs:
    """Garbage wherever a modality is missing."""
    values = {}
    for name, tensors in inputs.values.items():
        absent = ~inputs.present[name]
        values[name] = {
            key: tensor.masked_fill(
                absent.view(-1, *[1] * (tensor.dim() - 1)), float("nan") if tensor.is_floating_point() else 10**6
            )
            for key, tensor in tensors.items()
        }
    return ItemInputs(values, inputs.present)


ALL_SUBSETS = torch.tensor([[bool(number >> bit & 1) for bit in range(5)] for number in range(20)])


def test_every_subset_of_modalities_gives_a_unit_vector():
    vectors = make_model().item_tower(make_inputs(ALL_SUBSETS[:, [1, 0, 4, 3, 2]]))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(20), atol=1e-5)


def test_an_item_that_lacks_everything_gets_the_learned_vector():
    model = make_model()
    vectors = model.item_tower(make_inputs(torch.zeros(3, 5, dtype=torch.bool)))
    empty = model.item_tower.towers[0].empty / model.item_tower.towers[0].empty.norm()
    assert torch.allclose(vectors, empty.expand(3, -1))


@pytest.mark.parametrize("training", [False, True])
def test_what_stands_under_a_missing_modality_reaches_neither_vector_nor_gradient(training: bool):
    model = make_model().train(training)
    clean = make_inputs(ALL_SUBSETS)
    outcomes = []
    for inputs in (clean, spoil(clean)):
        torch.manual_seed(1)
        model.zero_grad()
        vectors = model.item_tower(inputs)
        (vectors * torch.linspace(0, 1, 8)).sum().backward()
        gradients = [parameter.grad for parameter in model.item_tower.parameters()]
        outcomes.append((vectors, gradients))
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    for first, second in zip(outcomes[0][1], outcomes[1][1], strict=True):
        assert torch.equal(first, second)


def test_every_parameter_gets_a_gradient_even_when_no_item_has_the_modality():
    model = make_model().train()
    model.item_tower(make_inputs(torch.zeros(4, 5, dtype=torch.bool))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.item_tower.parameters())


def test_a_query_may_name_one_modality_alone():
    model = make_model()
    inputs = make_inputs(torch.tensor([[True, False, False, False, False]] * 3))
    alone = ItemInputs({"text": inputs.values["text"]}, {"text": inputs.present["text"]})
    assert torch.equal(model.item_tower(alone), model.item_tower(inputs))


def test_each_modality_changes_the_vector():
    model = make_model()
    full = make_inputs(torch.ones(6, 5, dtype=torch.bool))
    vectors = model.item_tower(full)
    for name in MODALITIES:
        without = ItemInputs(full.values, {**full.present, name: torch.zeros(6, dtype=torch.bool)})
        assert not torch.isclose(model.item_tower(without), vectors, atol=1e-3).all(1).any()


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=20), st.floats(0, 0.99))
def test_hiding_never_invents_a_modality_and_never_takes_the_last(rows: list[list[bool]], dropout: float):
    present = torch.tensor(rows)
    shown = hide(present, dropout, alone=0.0)
    assert not (shown & ~present).any()
    assert torch.equal(shown.any(1), present.any(1))


def test_modalities_are_hidden_as_often_as_configured():
    shown = hide(torch.ones(20000, 3, dtype=torch.bool), 0.3, alone=0.0).float().mean(0)
    # Where all three would go (0.3 ** 3), one of them stays.
    assert torch.allclose(shown, torch.full((3,), 0.7 + 0.3**3 / 3), atol=0.02)


def test_some_items_show_one_modality_alone() -> None:
    torch.manual_seed(0)
    shown = hide(torch.ones(20000, 3, dtype=torch.bool), 0.0, alone=0.3)
    single = shown.sum(1) == 1
    assert single.float().mean().item() == pytest.approx(0.3, abs=0.02)
    assert shown[single].float().mean(0).tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_the_content_head_learns_the_vectors_of_known_items_and_teaches_nothing_back() -> None:
    torch.manual_seed(0)
    model = make_model().train()
    inputs = make_inputs(torch.ones(20, 5, dtype=torch.bool))
    vectors, missed = model.item_tower.encode(inputs)
    missed.sum().backward()
    of_heads = {id(parameter) for tower in model.item_tower.towers for parameter in tower.head.parameters()}
    for parameter in model.item_tower.parameters():
        assert (parameter.grad is not None and parameter.grad.any().item()) == (id(parameter) in of_heads)
    optimizer = torch.optim.Adam(model.item_tower.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        model.item_tower.encode(inputs)[1].sum().backward()
        optimizer.step()
    unknown = ItemInputs(inputs.values, {**inputs.present, "id": torch.zeros(20, dtype=torch.bool)})
    guessed = model.eval().item_tower(unknown)
    assert torch.equal(model.item_tower(inputs), vectors)
    assert (guessed * vectors).sum(1).mean() > 0.95


def test_only_known_items_with_content_teach_the_content_head() -> None:
    missed = make_model().item_tower.encode(make_inputs(ALL_SUBSETS))[1]
    taught = ALL_SUBSETS[:, -1] & ALL_SUBSETS[:, :-1].any(1)
    assert torch.equal(missed > 0, taught)
