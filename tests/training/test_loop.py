import copy
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys_ray.core.errors import ArtifactError, ConfigError, TrainingError
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.training.batches import BatchMaker, StepBatch, Windows
from recsys_ray.training.checkpoint import load_checkpoint, read_result
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.engine import Engine
from recsys_ray.training.fit import build_engine, fit_in_process, run_rank
from recsys_ray.training.loop import Hooks
from recsys_ray.training.progress import EpochRecord
from recsys_ray.training.validation import item_vectors, query_vectors

pytestmark = pytest.mark.slow

Settings = Callable[..., TrainingConfig]


class Cut(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture
def dropping(towers: TwoTower) -> TwoTower:
    """Towers with dropout: a resumed run is the same only if the random generators are restored too."""
    for module in towers.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    return towers


def test_training_learns_and_returns_the_weights_of_the_best_epoch(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    watched: list[EpochRecord] = []
    result = fit_in_process(towers, data, settings(epochs=8, learning_rate=0.02), watch=watched.append)
    assert [record.epoch for record in result.records] == list(range(1, 9))
    assert tuple(watched) == result.records
    assert result.records[-1].loss < result.records[0].loss - 0.3
    best = max(result.records, key=lambda record: record.validation["ndcg@10"])
    assert result.best_epoch == best.epoch
    assert result.validation == best.validation
    assert all(torch.equal(tensor, result.weights[name]) for name, tensor in towers.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"average": 0.9}, {"precision": "bf16"}])
def test_a_run_that_was_cut_goes_on_to_the_same_weights_to_the_bit(
    dropping: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path, changes: dict[str, object]
) -> None:
    config = settings(**changes)
    undisturbed = fit_in_process(copy.deepcopy(dropping), data, config)

    def keep_then_cut(record: EpochRecord, write: Callable[[Path], None]) -> None:
        if record.epoch == 3:
            raise Cut
        path = tmp_path / str(record.epoch)
        path.mkdir()
        write(path)

    with pytest.raises(Cut):
        run_rank(copy.deepcopy(dropping), data, config, (0, 1), Hooks(keep=keep_then_cut))
    torch.rand(7)  # the new process's generator is somewhere else
    resumed = run_rank(copy.deepcopy(dropping), data, config, (0, 1), Hooks(resume=tmp_path / "2"))

    assert resumed.best_epoch == undisturbed.best_epoch
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())


def test_a_run_in_a_folder_goes_on_where_it_was(
    dropping: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    whole = fit_in_process(copy.deepcopy(dropping), data, settings())
    fit_in_process(copy.deepcopy(dropping), data, settings(), tmp_path, stop_after=2)
    watched: list[EpochRecord] = []
    result = fit_in_process(dropping, data, settings(), tmp_path, watch=watched.append)
    assert tuple(watched) == result.records  # those of the first call too
    assert all(torch.equal(tensor, result.weights[name]) for name, tensor in whole.weights.items())
    assert read_result(tmp_path / "newest").records == result.records


def test_early_stopping_waits_as_long_as_it_is_told(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    result = fit_in_process(towers, data, settings(epochs=50, patience=2, learning_rate=1e-7, warmup=0))
    assert len(result.records) == result.best_epoch + 2


def test_fixed_epochs_keep_the_schedule_and_need_no_validation(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    blind = replace(data, validation=None)
    config = settings(epochs=6, patience=3)
    with pytest.raises(ConfigError, match="no validation"):
        fit_in_process(copy.deepcopy(towers), blind, config)
    short = fit_in_process(copy.deepcopy(towers), blind, config, stop_after=2)
    long = fit_in_process(copy.deepcopy(towers), blind, settings(epochs=6))
    assert short.best_epoch == 2
    assert short.validation == {}
    assert [record.loss for record in short.records] == [record.loss for record in long.records[:2]]


def test_a_loss_that_is_not_finite_stops_before_the_update(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    with torch.no_grad():
        towers.user_tower.members[0].start.fill_(torch.nan)
    rows = {name: tensor.clone() for name, tensor in towers.item_tower.state_dict().items()}
    with pytest.raises(TrainingError, match=r"loss of step 0 is nan.*training\.learning_rate"):
        fit_in_process(towers, data, settings())
    assert all(torch.equal(tensor, rows[name]) for name, tensor in towers.item_tower.state_dict().items())


def test_more_history_than_the_tower_reads_is_refused(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    with pytest.raises(ConfigError, match=r"training\.max_history: got 9; allowed: at most model\.user\.history = 8"):
        fit_in_process(towers, data, settings(max_history=9))
    assert len(fit_in_process(towers, data, settings(max_history=3, epochs=1)).records) == 1


class Sharded:
    """An engine whose checkpoints are those of so many ranks."""

    elastic = False

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def test_another_number_of_workers_goes_on_where_each_holds_the_whole(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path
) -> None:
    undisturbed = fit_in_process(copy.deepcopy(towers), data, settings())
    fit_in_process(copy.deepcopy(towers), data, settings(), tmp_path, stop_after=2)
    written = tmp_path / "newest" / "progress.json"
    written.write_text(written.read_text().replace('"world_size": 1', '"world_size": 2'))

    resumed = fit_in_process(copy.deepcopy(towers), data, settings(), tmp_path)
    # Nothing is drawn at random in these towers, so that only the restored weights and the order of the data count.
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]

    written = tmp_path / "newest" / "progress.json"
    written.write_text(written.read_text().replace('"world_size": 1', '"world_size": 2'))
    with pytest.raises(ArtifactError, match="written by 2 workers, now there are 1"):
        load_checkpoint(tmp_path / "newest", cast(Engine, Sharded(build_engine(towers, settings()))), (0, 1), 0)
    with pytest.raises(ArtifactError, match="no whole training checkpoint"):
        load_checkpoint(tmp_path, build_engine(towers, settings()), (0, 1), 0)


def test_a_run_that_was_cut_within_an_epoch_trains_on_every_event_once(
    dropping: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(checkpoint_steps=2, average=0.9)
    undisturbed = fit_in_process(copy.deepcopy(dropping), data, config)
    ledger: list[tuple[int, int]] = []  # (step, event) as they are trained on
    made = BatchMaker.make

    def make(maker: BatchMaker, windows: Windows, *draws: Any) -> StepBatch:
        ledger.extend((len(steps), place) for place in places_of(windows))
        steps.append(windows)
        return made(maker, windows, *draws)

    steps: list[Windows] = []
    monkeypatch.setattr(BatchMaker, "make", make)
    kept: list[int] = []  # steps done at each checkpoint

    def keep_then_cut(record: EpochRecord | None, write: Callable[[Path], None]) -> None:
        path = tmp_path / str(len(kept))
        path.mkdir()
        write(path)
        kept.append(len(steps))
        if len(kept) == 6:
            raise Cut

    with pytest.raises(Cut):
        run_rank(copy.deepcopy(dropping), data, config, (0, 1), Hooks(keep=keep_then_cut))
    torch.rand(7)
    # The newest but one: an interval is lost, and trained on again.
    lost = [event for step, event in ledger if step >= kept[4]]
    assert lost
    del ledger[len(ledger) - len(lost) :]
    del steps[kept[4] :]
    resumed = run_rank(copy.deepcopy(dropping), data, config, (0, 1), Hooks(resume=tmp_path / "4"))

    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())
    counts = np.bincount([event for _, event in ledger], minlength=len(data.train))
    assert (counts == config.epochs).all()


@pytest.fixture
def disk() -> Iterator[Callable[[int], None]]:
    """Sets how large a file may get; writing on fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_ends_a_run_with_its_last_checkpoint_in_place(
    towers: TwoTower, data: TrainInput, settings: Settings, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    undisturbed = fit_in_process(copy.deepcopy(towers), data, settings())

    def watch(record: EpochRecord) -> None:
        if record.epoch == 2:
            disk(1000)

    with pytest.raises(TrainingError, match=r"checkpoint of step 18 could not be written to .*make room"):
        fit_in_process(copy.deepcopy(towers), data, settings(), tmp_path, watch=watch)
    disk(resource.RLIM_INFINITY)
    resumed = fit_in_process(towers, data, settings(), tmp_path)
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())


def places_of(windows: Windows) -> list[int]:
    return [place for start, end in zip(windows.starts, windows.ends, strict=True) for place in range(start, end)]


def test_user_attributes_are_trained_on_and_validated_with(
    data: TrainInput, settings: Settings, towers: TwoTower
) -> None:
    fields = Fields(user_tokens={"age=1": 1, "age=2": 2})
    model = build(towers.config, fields, len(data.inputs), {})
    before = model.user_tower.members[0].attributes.weight.detach().clone()
    tokens = np.random.default_rng(0).integers(1, 3, (30, 1))
    fit_in_process(model, replace(data, user_tokens=tokens), settings(epochs=1))
    assert (model.user_tower.members[0].attributes.weight[1:] != before[1:]).any(1).all()


def test_prefixes_of_vectors_that_have_a_loss_rank_better_alone(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    def loss_of_prefix(**changes: Any) -> float:
        """Mean cross-entropy over the whole catalogue, by the first four numbers, of the events trained on."""
        model = copy.deepcopy(towers)
        fit_in_process(model, data, settings(epochs=25, learning_rate=0.02, negatives="all", **changes))
        assert data.validation is not None
        with torch.no_grad():
            items = item_vectors(model.eval(), data, torch.device("cpu"), (0, 1))
            queries = query_vectors(model, items, data, data.validation)
            cut = [F.normalize(vectors[:, :4], dim=-1) for vectors in (queries, items)]
            targets = torch.from_numpy(data.validation.items.values)
            return float(F.cross_entropy(cut[0] @ cut[1].T / 0.2, targets))

    assert loss_of_prefix(matryoshka=(4, 8)) < loss_of_prefix() - 0.05


def test_prefixes_are_shorter_than_the_vectors_of_one_member(
    towers: TwoTower, data: TrainInput, settings: Settings
) -> None:
    with pytest.raises(ConfigError, match=r"training\.matryoshka.*below model\.dim = 16"):
        fit_in_process(towers, data, settings(matryoshka=(16,)))


def test_workers_need_ray(towers: TwoTower, data: TrainInput, settings: Settings) -> None:
    with pytest.raises(ConfigError, match="workers: got 2"):
        fit_in_process(towers, data, settings(workers=2))
