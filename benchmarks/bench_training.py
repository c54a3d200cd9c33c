"""What training costs, each part against its peer in the same run: loss, step, ZeRO, gradient caching, bf16, Ray Train.

    python benchmarks/bench_training.py [loss step tables zero caching bf16 ray]

All parts by default, about five minutes on two idle cores; every process computes on one thread. Times are medians of
interleaved rounds. Peak memory is that of a fresh process: VmHWM after, less VmRSS before, so Linux only. What both
sides read (items, weights) is there before and not counted. Parity of workers is `bench_parity.py`, and what the
shorter step does to quality is `bench_quality.py`. The last line is `met N of M`; lines without a target do not count.
"""

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measuring import Row, interleaved, on_ranks, peak_bytes
from torch import Tensor, nn
from training_steps import (
    DIM,
    MINILM,
    SMALL_BERT,
    STEP_BATCH,
    TEMPERATURE,
    PaddedSteps,
    Steps,
    id_towers,
    save_bert,
    sequences,
    text_steps,
)

from recsys_ray.core.on_ray import connected
from recsys_ray.encoders.precision import has_bf16
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.deepspeed_engine import DeepSpeedEngine, Zero
from recsys_ray.training.fit import run_rank
from recsys_ray.training.loop import Hooks
from recsys_ray.training.loss import Negatives, sampled_softmax
from recsys_ray.training.on_ray import fit_on_ray
from recsys_ray.training.optimizer import build_adamw

MEGABYTE = 1e6
GIGABYTE = 1e9

LOSS_ITEMS, LOSS_POSITIONS = 1_000_000, 640  # three arrays of 640 x 1e6 fp32, 7.7 GB, are what the naive one holds
TABLE_ITEMS, TABLE_DIM = 1_000_000, 128
OUR_STEPS = 16  # batches differ in length: a round takes the mean over so many
PART = 32  # items at once, of the gradient caching


# Loss


def measure_loss() -> Iterator[Row]:
    """The full softmax over a million items, forward and backward."""
    peer, ours = (peak_bytes(loss_peak, kind) for kind in ("naive", "ours"))
    yield Row(
        f"loss, peak memory at {LOSS_POSITIONS} x {LOSS_ITEMS:,}",
        "<= 1/8",
        f"{peer / GIGABYTE:.2f} GB",
        f"{ours / GIGABYTE:.2f} GB",
        ours / peer,
        ours <= peer / 8,
    )
    few, inputs = loss_inputs(32), loss_inputs(LOSS_POSITIONS)
    losses = [loss_of(kind, *few) for kind in ("naive", "ours")]
    if not np.isclose(*losses, rtol=1e-4):
        raise SystemExit(f"the two losses differ: {losses}")
    slow, fast = interleaved([partial(loss_of, "naive", *inputs), partial(loss_of, "ours", *inputs)])
    name = f"loss, time at {LOSS_POSITIONS} x {LOSS_ITEMS:,}"
    yield Row(name, "<= 1.2", f"{slow:.2f} s", f"{fast:.2f} s", fast / slow, fast <= 1.2 * slow)


def loss_inputs(positions: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    items = F.normalize(torch.randn(LOSS_ITEMS, DIM), dim=1).requires_grad_()
    queries = F.normalize(torch.randn(positions, DIM), dim=1).requires_grad_()
    return queries, items, torch.randint(LOSS_ITEMS, (positions,))


def loss_of(kind: str, queries: Tensor, items: Tensor, targets: Tensor) -> float:
    if kind == "naive":
        loss = F.cross_entropy((queries / TEMPERATURE) @ items.T, targets, reduction="sum")
    else:
        rows, log_expected = torch.arange(len(items)), torch.zeros(len(items))
        wanted = F.embedding(targets, items)
        loss = sampled_softmax(queries, wanted, targets, Negatives(items, rows, log_expected), (TEMPERATURE, None))
    loss.backward()
    queries.grad = items.grad = None
    return float(loss.detach())


def loss_peak(kind: str) -> Callable[[], Any]:
    return partial(loss_of, kind, *loss_inputs(LOSS_POSITIONS))


# Sequence step


def measure_step() -> list[Row]:
    """Our step against full cross-entropy over padded histories, the same user tower."""
    data, model = sequences(), id_towers()
    config = TrainingConfig.parse({"workers": 0, "negatives": 256, "batch_size": STEP_BATCH})
    ours = Steps(model, data, config)
    peer = PaddedSteps(model, data, config)
    slow, fast = interleaved([peer, lambda: [ours() for _ in range(OUR_STEPS)]])
    fast /= OUR_STEPS
    name = f"step, {ours.precision} against padded full fp32 (time only)"
    row = Row(name, "<= 1/40", f"{1e3 * slow:.0f} ms", f"{1e3 * fast:.1f} ms", fast / slow, slow >= 40 * fast)
    print(f"one padded step takes as long as {slow / fast:.1f} of ours", flush=True)
    return [row]


# Embedding tables


def measure_tables() -> list[Row]:
    """A step of AdamW with an average of the weights over a million ids: their table whole, and row by row."""
    dense, lazy = (table_steps(above) for above in (None, 0))
    slow, fast = interleaved([dense, lambda: [lazy() for _ in range(OUR_STEPS)]])
    fast /= OUR_STEPS
    del dense, lazy
    peer, ours = (peak_bytes(tables_peak, above) for above in (None, 0))
    name = f"tables of {TABLE_ITEMS:,} x {TABLE_DIM}"
    return [
        Row(f"{name}, step", "none", f"{1e3 * slow:.0f} ms", f"{1e3 * fast:.1f} ms", fast / slow, None),
        Row(
            f"{name}, peak memory of two steps and what they keep",
            "none",
            f"{peer / GIGABYTE:.2f} GB",
            f"{ours / GIGABYTE:.2f} GB",
            ours / peer,
            None,
        ),
    ]


def table_steps(above: int | None) -> Steps:
    settings = {"workers": 0, "negatives": 4096, "batch_size": STEP_BATCH, "sparse_tables": above}
    data = sequences(TABLE_ITEMS)
    return Steps(id_towers(TABLE_ITEMS, TABLE_DIM), data, TrainingConfig.parse(settings))


def tables_peak(above: int | None) -> Callable[[], Any]:
    def run() -> None:  # building the engine is in it: moments and average are what is kept
        steps = table_steps(above)
        steps()
        steps()

    return run


# ZeRO

FORMULAS: dict[int, Callable[[int], float]] = {1: lambda n: 4 + 12 / n, 2: lambda n: 2 + 14 / n, 3: lambda n: 16 / n}


def measure_zero() -> list[Row]:
    """Bytes a parameter that a worker holds after the backward pass, against what ZeRO promises."""
    rows = []
    for workers in (1, 2, 4):
        ranks = on_ranks(workers, zero_rank)
        for stage, formula in FORMULAS.items():
            expected, held = formula(workers), mean(rank[str(stage)] for rank in ranks)
            ratio = held / expected
            name = f"zero, stage {stage} on {workers} workers, bytes a parameter"
            rows.append(Row(name, "1 +- 0.15", f"{expected:.2f}", f"{held:.2f}", ratio, abs(ratio - 1) <= 0.15))
    return rows


def zero_rank(rank: int, workers: int) -> dict[str, float]:
    """Bytes a parameter of this rank, by stage."""
    found = {}
    for stage in FORMULAS:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 1024), nn.GELU(), nn.Linear(1024, 1024), nn.GELU(), nn.Linear(1024, 512))
        size = sum(parameter.numel() for parameter in model.parameters())
        engine = DeepSpeedEngine(model, lambda module: build_adamw(module, 1e-3, 0.01), Zero(stage, "bf16"))
        inputs = torch.randn(8, 512, generator=torch.Generator().manual_seed(rank))
        for last in (False, True):  # Adam's moments are made by the first step
            with engine.precision():
                loss = engine.model(inputs).float().square().mean() / workers
            engine.backward(loss)
            if not last:
                engine.step(1e-3)
        found[str(stage)] = state_bytes(engine.model, stage) / size
    return found


def state_bytes(wrapped: Any, stage: int) -> int:
    """Of the tensors where DeepSpeed keeps parameters, gradients and optimizer, each memory counted once."""
    optimizer = wrapped.optimizer
    parameters = list(wrapped.module.parameters())
    if stage == 3:
        weights = [parameter.ds_tensor for parameter in parameters]
        masters = optimizer.fp32_partitioned_groups_flat
    else:
        weights = [parameter.data for parameter in parameters]
        masters = optimizer.single_partition_of_fp32_groups
    gradients = [parameter.grad for parameter in parameters] + [getattr(p, "grad_accum", None) for p in parameters]
    gradients += [tensor for group in optimizer.averaged_gradients.values() for tensor in group or ()]
    gradients += [master.grad for master in masters]
    moments = [value for state in optimizer.optimizer.state.values() for value in state.values()]
    tensors = [one for one in (*weights, *masters, *gradients, *moments) if isinstance(one, Tensor)]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


# A trained text encoder


def measure_caching() -> list[Row]:
    """Gradient caching against encoding all items of the step at once."""
    with tempfile.TemporaryDirectory() as folder:
        save_bert(Path(folder), SMALL_BERT)
        whole, parts = (text_steps(folder, items_at_once=size) for size in (None, PART))
        kept, few = whole.kept_bytes(), parts.kept_bytes()
        plain, cached = interleaved([whole, parts])
        peak, low = (peak_bytes(text_peak, folder, size) for size in (None, PART))
    rows = [
        ("bytes kept for the backward pass", kept / MEGABYTE, few / MEGABYTE, "MB"),
        ("peak memory of two steps", peak / MEGABYTE, low / MEGABYTE, "MB"),
        ("step time", plain, cached, "s"),
    ]
    return [
        Row(f"caching, {name}", "none", f"{peer:.3g} {unit}", f"{ours:.3g} {unit}", ours / peer, None)
        for name, peer, ours, unit in rows
    ]


def text_peak(folder: str, items_at_once: int | None) -> Callable[[], Any]:
    steps = text_steps(folder, items_at_once=items_at_once)
    return lambda: [steps(), steps()]


def measure_bf16() -> list[Row]:
    """A step of a text encoder of MiniLM's size, where the arithmetic is there."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if not has_bf16(device):
        print("bf16: skipped: this processor has no bfloat16 arithmetic", flush=True)
        return []
    with tempfile.TemporaryDirectory() as folder:
        save_bert(Path(folder), MINILM)
        single, half = (text_steps(folder, device, precision=precision) for precision in ("fp32", "bf16"))
        losses = single(), half()
        slow, fast = interleaved([single, half])
    apart = abs(losses[1] / losses[0] - 1)
    return [
        Row("bf16, text encoder step", "<= 1/2.8", f"{slow:.3f} s", f"{fast:.3f} s", fast / slow, slow >= 2.8 * fast),
        Row("bf16, loss", "1 +- 0.01", f"{losses[0]:.4f}", f"{losses[1]:.4f}", losses[1] / losses[0], apart <= 0.01),
    ]


# Ray Train


def measure_ray() -> list[Row]:
    """Sequences a second of two Ray Train workers, and of the same two ranks as plain processes."""
    plain: list[float] = []
    ours: list[float] = []
    model, data = id_towers(), sequences()
    with tempfile.TemporaryDirectory() as folder, connected("local", 4, 300 * 1024**2):
        for number in range(2):
            plain += on_ranks(2, plain_rank)[0]
            result = fit_on_ray(model, data, ray_config(), Path(folder) / str(number))
            ours += [record.samples_per_s for record in result.records[1:]]
    peer, mine = median(plain), median(ours)
    row = ("ray, two workers", ">= .97", f"{peer:,.0f} sequences/s", f"{mine:,.0f} sequences/s")
    return [Row(*row, mine / peer, mine >= 0.97 * peer)]


def ray_config() -> TrainingConfig:
    settings = {"workers": 2, "negatives": 256, "batch_size": STEP_BATCH, "epochs": 4, "patience": None}
    return TrainingConfig.parse(settings)


def plain_rank(rank: int, workers: int) -> list[float]:
    """Sequences a second of each epoch but the first, in which everything is warmed up."""
    result = run_rank(id_towers(), sequences(), ray_config(), (rank, workers), Hooks(say=lambda _: None))
    return [record.samples_per_s for record in result.records[1:]]


PARTS: dict[str, Callable[[], Iterable[Row]]] = {
    "loss": measure_loss,
    "step": measure_step,
    "tables": measure_tables,
    "zero": measure_zero,
    "caching": measure_caching,
    "bf16": measure_bf16,
    "ray": measure_ray,
}


def main() -> int:
    """Print each part's rows as they come; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"some of {', '.join(PARTS)}; all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    torch.set_num_threads(1)
    met = []
    for part in chosen:
        for row in PARTS[part]():
            print(row, flush=True)
            met += [row.met] if row.met is not None else []
    print(f"met {sum(met)} of {len(met)}")
    return int(not all(met))


if __name__ == "__main__":
    raise SystemExit(main())
