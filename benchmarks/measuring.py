"""Rows of a benchmark, interleaved times, peak memory of fresh processes, and ranks as plain processes."""

import json
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

ROUNDS = 5
SPAWN = get_context("spawn")


@dataclass(frozen=True)
class Row:
    """One measurement; `met` is None where there is no target."""

    name: str
    target: str
    peer: str
    ours: str
    ratio: float
    met: bool | None

    def __str__(self) -> str:
        verdict = {True: "met", False: "MISSED", None: "no target"}[self.met]
        return (
            f"{self.name}: target {self.target}, peer {self.peer}, ours {self.ours}, ratio {self.ratio:.3f}: {verdict}"
        )


def interleaved(runs: Sequence[Callable[[], Any]]) -> list[float]:
    """Median seconds of each, over rounds in which all take turns; each runs once before."""
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(ROUNDS):
        for taken, run in zip(times, runs, strict=True):
            began = time.perf_counter()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - began)
    return [median(taken) for taken in times]


def peak_bytes(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> int:
    """How much more memory a fresh process holds at its peak than before: `prepare` makes what is run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "peak"
        join([SPAWN.Process(target=_peak, args=(out, prepare, arguments))])
        return int(out.read_text())


def _peak(out: Path, prepare: Callable[..., Callable[[], Any]], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    run = prepare(*arguments)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far becomes what is held now
    run()
    out.write_text(str(memory("VmHWM") - before))


def memory(field: str) -> int:
    """Bytes, as Linux counts them for this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def on_ranks(workers: int, work: Callable[[int, int], Any]) -> list[Any]:
    """What `work` returns on each rank of a gloo group of fresh processes."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        ranks = range(workers)
        join([SPAWN.Process(target=_rank, args=(rank, workers, port, folder, work)) for rank in ranks])
        return [json.loads((Path(folder) / str(rank)).read_text()) for rank in ranks]


def _rank(rank: int, workers: int, port: int, folder: str, work: Callable[[int, int], Any]) -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # DeepSpeed's calls
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(workers)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo")
    (Path(folder) / str(rank)).write_text(json.dumps(work(rank, workers)))
    dist.barrier()
    os._exit(0)  # the threads of DeepSpeed's groups now and then abort an orderly exit


def join(processes: Sequence[Any]) -> None:
    """Run them all; a failure of one ends the benchmark."""
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise SystemExit("a process failed, see above")
