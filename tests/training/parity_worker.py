"""One worker of the parity tests: a few steps at a global batch that does not depend on the number of workers.

Run as ``python parity_worker.py RANK WORLD_SIZE PORT OUT CASE...``; a case is "plain", "deaf" (a gather without its
gradient), "exposed" (what users were shown is among the negatives), "exposedzero3", "aligned" (texts and pictures drawn
together), "aligneddeaf", "alignedzero3", "strided" (weights that do not lie row by row, as those of convolutions),
"sparse" (AdamW over tables updated row by row), "bf16", "zero0" ... "zero3", "bf16zero2", "offload2" (the optimizer's
share on the CPU), "adam0" ... "adam3", which keep a checkpoint of AdamW's state, "resume2", "resume3": two epochs under
ZeRO in one go, and cut after the first one and gone on from its checkpoint; "cut1" ... "cut3", "cut2bf16": the same
without dropout, cut for another number of workers; or "goon1" ...: going on where the other number was cut.
"""

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.training import alignment as alignment_module
from recsys_ray.training import step as step_module
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.batches import BatchMaker
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.deepspeed_engine import DeepSpeedEngine, Zero
from recsys_ray.training.engine import Engine, PlainEngine
from recsys_ray.training.exposed import ExposedNegatives, shown_at
from recsys_ray.training.fit import run_rank
from recsys_ray.training.loop import Hooks
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.optimizer import build_adamw
from recsys_ray.training.progress import EpochRecord, TrainResult
from recsys_ray.training.step import train_step
from recsys_ray.training.tables import tables_above

STEPS = 6
NUM_ITEMS = 40
LEARNING_RATE = 0.5


def small_towers(content: bool = False, num_items: int = NUM_ITEMS) -> TwoTower:
    user = {"blocks": 1, "heads": 2, "history": 8, "dropout": 0.0}
    parts = {"text": None, "image": None, "vectors": None, "attributes": None}
    if content:
        parts |= {"text": {}, "image": {}}
    config = TwoTowerConfig.parse(
        {"dim": 16, "temperature": 0.2, "modality_dropout": 0.0, "alone": 0.0, "user": user, **parts}
    )
    torch.manual_seed(3)
    return build(config, Fields(), num_items, {"text": 40, "image": 36} if content else {})


def small_data(content: bool = False, num_items: int = NUM_ITEMS) -> TrainInput:
    generator = np.random.default_rng(5)
    users = np.sort(generator.integers(0, 30, 300))
    items = generator.integers(0, num_items, 300)
    weights = np.ones(300, np.float32)
    events = Events.from_columns(users, items, np.arange(300), weights, 30, num_items)
    values = {"id": {"row": torch.arange(num_items)}}
    present = {"id": torch.ones(num_items, dtype=torch.bool)}
    if content:
        for name, length in (("text", 40), ("image", 36)):
            values[name] = {"vector": torch.from_numpy(generator.normal(size=(num_items, length)).astype(np.float32))}
            present[name] = torch.from_numpy(generator.random(num_items) < 0.8)
    return TrainInput(ItemInputs(values, present), events)


def small_exposures(count: int = 500) -> Events:
    """What the users of `small_data` were shown between their events, some of it at the same time as these."""
    generator = np.random.default_rng(9)
    users, items = generator.integers(0, 30, count), generator.integers(0, NUM_ITEMS, count)
    times = 10 * users + generator.integers(-3, 12, count)
    return Events.from_columns(users, items, times, np.ones(count, np.float32), 30, NUM_ITEMS)


def build_engine(case: str) -> Engine:
    model = small_towers(case.startswith("aligned"))
    precision = "bf16" if case.startswith("bf16") else "fp32"
    if case == "strided":
        for parameter in model.parameters():
            parameter.data = parameter.data.T.contiguous().T if parameter.dim() == 2 else parameter.data
        return PlainEngine(model, lambda module: torch.optim.SGD(module.parameters(), LEARNING_RATE, fused=True))
    if case == "sparse":
        sparse = tables_above(model, 0, 0.0)
        return PlainEngine(model, lambda module: build_adamw(module, 0.01, 0.0, tuple(sparse)), sparse=sparse)
    if case in ("plain", "deaf", "bf16", "exposed", "aligned", "aligneddeaf"):
        return PlainEngine(model, lambda module: torch.optim.SGD(module.parameters(), LEARNING_RATE), precision)
    stage = int(case[-1])
    if case.startswith("adam"):
        return DeepSpeedEngine(model, lambda module: build_adamw(module, LEARNING_RATE, 0.1), Zero(stage))
    zero = Zero(stage, precision, offload=case.startswith("offload"))
    return DeepSpeedEngine(model, lambda module: torch.optim.SGD(module.parameters(), LEARNING_RATE), zero)


class Recorded:
    """An engine that remembers the first gradient."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.gradient = engine, np.zeros(0)
        self.model, self.device, self.step = engine.model, engine.device, engine.step

    def precision(self) -> AbstractContextManager[None]:
        return self.engine.precision()

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss)
        if isinstance(self.model, nn.Module) and isinstance(self.engine, PlainEngine) and not len(self.gradient):
            # Summed over ranks, a parameter without use has a gradient of zeros; alone it has none.
            used = [p.grad for p in self.model.parameters() if p.grad is not None and p.grad.any()]
            used += [values for _, values in self.engine._rows.values()]
            self.gradient = np.concatenate([gradient.flatten().numpy() for gradient in used])


def run(case: str, rank: int, world_size: int, out: Path) -> None:
    whole = step_module.gather_with_gradient
    if case.endswith("deaf"):
        deaf_module = alignment_module if case.startswith("aligned") else step_module
        deaf_module.gather_with_gradient = lambda local, count: whole(local.detach(), count)
    data, engine = small_data(case.startswith("aligned")), Recorded(build_engine(case))
    config = TrainingConfig.parse({"batch_size": 10, "exposed_negatives": 25 if case.startswith("exposed") else 0})
    exposed = ExposedNegatives(shown_at(data.train, small_exposures()), config)
    maker = BatchMaker(data, 8, config, (rank, world_size))
    # An odd number of negatives: the slices of two ranks are unequal.
    sampler = NegativeSampler(data.train.item_counts(), 15, 0.5, 0)
    # As many pairs as make the slices of two ranks unequal.
    weights = {"alignment": 0.7 if case.startswith("aligned") else 0.0, "alignment_items": 11}
    pairs = PairSampler(data.inputs, TrainingConfig.parse(weights), (rank, world_size))
    batches = [windows for epoch in range(3) for windows in maker.epoch(epoch)][:STEPS]
    rate = 0.01 if case == "sparse" else LEARNING_RATE
    draws = [exposed.add(sampler.draw(step), windows, step) for step, windows in enumerate(batches)]
    losses = [
        train_step(engine, maker.make(windows, draw, pairs.draw(step)), 0.2, step, rate)
        for step, (windows, draw) in enumerate(zip(batches, draws, strict=True))
    ]
    whole_model = engine.engine.weights()
    if case.startswith("adam"):
        (out / case).mkdir(exist_ok=True)
        engine.engine.save(out / case)
    if rank == 0:
        weights = np.concatenate([tensor.flatten().numpy() for tensor in whole_model.values()])
        np.savez(out / f"{case}_{world_size}.npz", losses=losses, gradient=engine.gradient, weights=weights)
    step_module.gather_with_gradient = alignment_module.gather_with_gradient = whole


def resume(case: str, rank: int, world_size: int, out: Path) -> None:
    """Write what `fit.run_rank` returns: undisturbed, and by a second engine that loads what the first one saved."""
    values = {"engine": "deepspeed", "zero_stage": int(case[-1]), "workers": world_size, "precision": "fp32"}
    config = TrainingConfig.parse({**values, "batch_size": 10, "negatives": 15, "epochs": 2, "patience": None})
    kept = out / case

    def keep(_: EpochRecord, write: Callable[[Path], None]) -> None:
        kept.mkdir(exist_ok=True)
        write(kept)

    def train(hooks: Hooks) -> TrainResult:
        model = small_towers()
        for module in model.modules():  # resumed alike only if the random generators of both ranks are restored too
            if isinstance(module, nn.Dropout):
                module.p = 0.3
        return run_rank(model, small_data(), config, (rank, world_size), hooks)

    results = {"whole": train(Hooks()), "cut": train(Hooks(keep=keep, stop_after=1))}
    dist.barrier()
    results["resumed"] = train(Hooks(resume=kept))
    if rank == 0:
        arrays = {}
        for name, result in results.items():
            arrays[f"{name}_losses"] = np.array([record.loss for record in result.records])
            arrays[f"{name}_weights"] = np.concatenate([tensor.flatten().numpy() for tensor in result.weights.values()])
        np.savez(out / f"{case}.npz", **arrays)


def count_step(module: nn.Module, _: object) -> None:
    module.steps.add_(1.0)


def change_size(case: str, rank: int, world_size: int, out: Path) -> None:
    """Leave a checkpoint after the first of two epochs, and the result of both; or go on from the other size's."""
    name = case.removeprefix("cut").removeprefix("goon")
    values = {"engine": "deepspeed", "zero_stage": int(name[0]), "workers": world_size, "universal_checkpoints": True}
    values |= {"precision": name[1:] or "fp32", "weight_decay": 0.3, "learning_rate": 0.05}
    config = TrainingConfig.parse({**values, "batch_size": 10, "negatives": 15, "epochs": 2, "patience": None})

    def train(hooks: Hooks) -> None:
        model = small_towers()
        model.user_tower.register_buffer("steps", torch.zeros(1))  # as batch norms count
        model.user_tower.register_forward_pre_hook(count_step)
        result = run_rank(model, small_data(), config, (rank, world_size), hooks)
        if rank == 0:
            weights = {name: tensor.numpy() for name, tensor in result.weights.items()}
            losses = np.array([record.loss for record in result.records])
            np.savez(out / f"{case}_{world_size}.npz", losses=losses, **weights)

    def kept(workers: int) -> Path:
        return out / f"cut{name}_{workers}"

    meeting, other = dist.FileStore(str(out / "meeting"), -1), 3 - world_size
    if case.startswith("goon"):
        meeting.wait([str(kept(other))], timedelta(seconds=120))
        train(Hooks(resume=kept(other)))
        return

    def keep(_: EpochRecord, write: Callable[[Path], None]) -> None:
        kept(world_size).mkdir(exist_ok=True)
        write(kept(world_size))

    train(Hooks(keep=keep, stop_after=1))
    dist.barrier()
    meeting.set(str(kept(world_size)), "written")
    train(Hooks())


def main(rank: int, world_size: int, port: str, out: str, *cases: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if world_size > 1 or cases[0].startswith(("cut", "goon")):
        dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    for case in cases:
        work = resume if case.startswith("resume") else change_size if case.startswith(("cut", "goon")) else run
        work(case, rank, world_size, Path(out))
    if dist.is_initialized():
        # Everything is written. The groups that DeepSpeed made keep threads that now and then abort an orderly exit.
        dist.barrier()
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
