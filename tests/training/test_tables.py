"""Tables updated row by row give what AdamW over the whole table gives, whichever rows are met when."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training import tables as tables_module
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.engine import PlainEngine
from recsys_ray.training.fit import build_engine, fit_in_process
from recsys_ray.training.optimizer import build_adamw
from recsys_ray.training.tables import tables_above

ROWS, DIM = 6, 3
Settings = Callable[..., TrainingConfig]


class Tables(nn.Module):
    """A table of rows, a bag of tokens, and something beside them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.rows, self.bag = nn.Embedding(ROWS, DIM), nn.EmbeddingBag(ROWS, DIM, mode="mean", padding_idx=0)
        self.linear = nn.Linear(DIM, 1)

    def forward(self, rows: Tensor) -> Tensor:
        return self.linear(self.rows(rows) + self.bag(rows.view(-1, 1))).sum()


def engines(clip_norm: float | None = 0.5, average: float | None = 0.9) -> tuple[PlainEngine, PlainEngine]:
    dense = PlainEngine(Tables(), lambda module: build_adamw(module, 0.1, 0.01), "fp32", clip_norm, average)
    model = Tables()
    sparse = tables_above(model, ROWS - 1, 0.01)
    assert set(sparse) == {"rows.weight", "bag.weight"}
    lazy = PlainEngine(
        model, lambda module: build_adamw(module, 0.1, 0.01, tuple(sparse)), "fp32", clip_norm, average, sparse
    )
    return dense, lazy


def train(engine: PlainEngine, steps: list[list[int]]) -> list[float]:
    losses = []
    for number, rows in enumerate(steps):
        loss = engine.model(torch.tensor(rows, dtype=torch.int64)).square()
        losses.append(float(loss.detach()))
        engine.backward(loss)
        engine.step(0.05 / (1 + number))
    return losses


def assert_close(dense: PlainEngine, lazy: PlainEngine) -> None:
    with dense.evaluating() as one, lazy.evaluating() as other:
        torch.testing.assert_close(dict(one.state_dict()), dict(other.state_dict()), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(dense.weights(), lazy.weights(), atol=2e-6, rtol=2e-5)
    torch.testing.assert_close(dict(dense.model.state_dict()), dict(lazy.model.state_dict()), atol=2e-6, rtol=2e-5)


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=4), min_size=1, max_size=25),
    st.sampled_from([None, 0.9]),
)
def test_rows_met_now_and_then_have_the_weights_and_averages_of_dense_adamw(
    steps: list[list[int]], average: float | None
) -> None:
    dense, lazy = engines(average=average)
    assert train(dense, steps) == pytest.approx(train(lazy, steps), abs=2e-5)
    assert_close(dense, lazy)


def test_rows_met_in_every_step_are_those_of_dense_adamw() -> None:
    dense, lazy = engines()
    steps = [list(range(ROWS))] * 30
    assert train(dense, steps) == pytest.approx(train(lazy, steps), abs=2e-6)
    assert_close(dense, lazy)


def test_long_absences_and_stretches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, lazy = engines()
    steps = [[1, 2, 3], *[[1]] * 90, [2], *[[1, 4]] * 20, [3]]
    monkeypatch.setattr(tables_module, "LONGEST", 32)
    train(dense, steps)
    train(lazy, steps)
    assert_close(dense, lazy)


def test_without_its_idle_moves_a_row_ends_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """What LazyAdam does: the comparison above sees it."""
    dense, lazy = engines()
    monkeypatch.setattr(tables_module, "_catch_up", lambda *_: None)
    steps = [[1, 2], [1], [1], [1], [2]]
    train(dense, steps)
    train(lazy, steps)
    with pytest.raises(AssertionError, match="not close"):
        assert_close(dense, lazy)


def test_only_rows_that_were_met_are_written() -> None:
    _, lazy = engines()
    before = lazy.model.rows.weight.detach().clone()
    train(lazy, [[1, 2], [2]])
    assert (lazy.model.rows.weight != before).any(1).tolist() == [False, True, True, False, False, False]
    assert lazy.model.rows.weight.grad is None


def test_training_with_sparse_tables_is_training(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    dense = fit_in_process(copy.deepcopy(towers), data, settings(sparse_tables=None))
    config = settings(sparse_tables=10, checkpoint_steps=2)
    assert tables_above(towers, config.sparse_above, 0.01)
    sparse = fit_in_process(copy.deepcopy(towers), data, config)
    np.testing.assert_allclose([r.loss for r in sparse.records], [r.loss for r in dense.records], atol=1e-4)
    for name, tensor in dense.weights.items():
        torch.testing.assert_close(sparse.weights[name], tensor, atol=2e-3, rtol=0)

    fit_in_process(copy.deepcopy(towers), data, config, tmp_path, stop_after=2)
    resumed = fit_in_process(copy.deepcopy(towers), data, config, tmp_path)
    assert [record.loss for record in resumed.records] == [record.loss for record in sparse.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in sparse.weights.items())
    with pytest.raises(ArtifactError, match=r"another training\.sparse_tables"):
        build_engine(towers, settings(sparse_tables=None)).load(tmp_path / "newest")


def test_a_checkpoint_within_a_stretch_is_gone_on_from_to_the_bit(tmp_path: Path) -> None:
    steps = [[1, 2, 3], [1], [4], [2], [3], [1, 5]]
    _, whole = engines()
    train(whole, steps)
    _, cut = engines()
    train(cut, steps[:3])
    cut.save(tmp_path)
    _, resumed = engines()
    resumed.load(tmp_path)
    for number, rows in enumerate(steps[3:], 3):
        resumed.backward(resumed.model(torch.tensor(rows)).square())
        resumed.step(0.05 / (1 + number))
    assert all(torch.equal(tensor, resumed.weights()[name]) for name, tensor in whole.weights().items())


def test_deepspeed_shards_whole_tables(settings: Settings) -> None:
    assert settings(engine="deepspeed", workers=1).sparse_above is None
    with pytest.raises(ConfigError, match='sparse_tables auto or null with engine "deepspeed"'):
        settings(engine="deepspeed", workers=1, sparse_tables=1000)
