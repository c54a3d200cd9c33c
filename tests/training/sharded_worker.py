"""One worker of the tests of towers that are created in shards.

Run as ``python sharded_worker.py RANK WORLD_SIZE PORT FOLDER CASE...``. A case is a pickled `Handover` and settings in
FOLDER, "whole" or "sharded", as in "large-sharded": whole, the worker has all parameters before DeepSpeed shards them.
"""

import gc
import json
import os
import pickle
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from recsys_ray.training import fit
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import load_input
from recsys_ray.training.deepspeed_engine import Elements
from recsys_ray.training.handover import Handover, take
from recsys_ray.training.loop import Hooks


class Live:
    """The bytes of parameters that this process holds, whole ones and shards, at their peak."""

    def __init__(self) -> None:
        self.parameters: list[nn.Parameter] = []
        self.peak = 0

    def look(self, *_: object) -> None:
        shards = (getattr(parameter, "ds_tensor", None) for parameter in self.parameters)
        held = (*self.parameters, *(shard for shard in shards if shard is not None))
        self.peak = max(self.peak, sum(one.numel() * one.element_size() for one in held))

    def place(self, shard: fit.Place) -> fit.Place:
        """The same, watched: as a parameter comes, as it goes, and as its gradient is made."""

        def watched(parameter: nn.Parameter) -> None:
            self.parameters.append(parameter)
            self.look()
            shard(parameter)
            if parameter.requires_grad:
                parameter.register_hook(self.look)
            self.look()

        return watched


def peak_memory() -> int:
    """The most that this process has had in memory, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def run(case: str, place: tuple[int, int], folder: Path) -> None:
    name, _, way = case.rpartition("-")
    # As Ray sends it to its workers; the test that starts this process wrote the file.
    handed: Handover = pickle.loads((folder / f"{name}.pickle").read_bytes())
    config = TrainingConfig.parse(json.loads((folder / f"{name}.json").read_text()))
    data, live, before = load_input(folder / "input"), Live(), peak_memory()
    shard = fit.placing(handed, config) if way == "sharded" else lambda _: None
    model = take(handed, live.place(shard))
    taken = (live.peak, peak_memory() - before)
    watch = nn.modules.module.register_module_forward_hook(live.look)
    result = fit.run_rank(model, data, config, place, Hooks())
    watch.remove()
    sizes = Elements.of(handed.outline)
    facts = {"taken": taken[0], "taken_rss": taken[1], "live": live.peak, "rss": peak_memory() - before}
    facts |= {"whole": 4 * sizes.whole, "largest": 4 * sizes.largest}
    (folder / f"{case}_{place[0]}.json").write_text(json.dumps(facts))
    if place[0] == 0:
        losses = np.array([record.loss for record in result.records])
        np.savez(folder / f"{case}.npz", losses=losses, **{key: one.numpy() for key, one in result.weights.items()})
    del model, live, result
    gc.collect()


def main(rank: int, world_size: int, port: str, folder: str, *cases: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    dist.init_process_group("gloo", timeout=timedelta(seconds=120))
    for case in cases:
        run(case, (rank, world_size), Path(folder))
    # Everything is written. The groups that DeepSpeed made keep threads that now and then abort an orderly exit.
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
