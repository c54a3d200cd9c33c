"""What the chaos tests kill: the workers of a run on Ray, or its driver, which is this file.

Run as ``python chaos.py WAY OUT SETTINGS`` with settings in JSON. Ways: "join ADDRESS" trains on the cluster there,
"nodes" on a cluster of its own, of which it takes one of two nodes away after the first checkpoint; "writing" and
"renaming" train in this process, which kills itself while it writes the second checkpoint, or puts it in its place. The
losses and the digest of the weights go to OUT/result.json.
"""

import contextlib
import hashlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import LocalCheckpoints, fit_in_process
from recsys_ray.training.progress import TrainResult

ENGINE_FILE = "engine.pt"
FEW, MANY = 40, 200_000
"""Items. A checkpoint of many takes some hundredths of a second to copy: long enough to be killed in it."""


def towers_and_data(num_items: int = MANY) -> tuple[TwoTower, TrainInput]:
    """Towers with dropout, so that a run that goes on is the same only if the random generators do too."""
    sys.path.insert(0, str(Path(__file__).parent))
    from parity_worker import small_data, small_towers

    model = small_towers(num_items=num_items)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.3
    return model, small_data(num_items=num_items)


def outcome(result: TrainResult) -> dict[str, object]:
    """What two runs must have in common, to the bit."""
    digest = hashlib.sha256()
    for name in sorted(result.weights):
        digest.update(result.weights[name].contiguous().numpy().tobytes())
    return {"losses": [record.loss for record in result.records], "weights": digest.hexdigest()}


def train_workers() -> list[int]:
    """Process ids of the Ray Train workers below this process, the newest last."""
    return sorted(_train_workers())


def _train_workers() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            ours = os.getpid() in _ancestors(int(folder.name))
        except OSError:
            continue
        if title.startswith(b"ray::RayTrainWorker") and ours:
            yield int(folder.name)


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.add(pid)
    return found


def whole_checkpoints(out: Path) -> set[Path]:
    """Those of a run on Ray that Ray Train knows of."""
    try:
        written = json.loads((out / "run" / "checkpoint_manager_snapshot.json").read_text())
    except (OSError, ValueError):  # not there yet, or being written
        return set()
    names = [kept["checkpoint_dir_name"] for kept in written["checkpoint_results"]]
    return {out / "run" / name for name in names}


def uploading(out: Path) -> Path | None:
    """A checkpoint of which a part is still to come; the first one is never told apart."""
    whole = whole_checkpoints(out)
    sizes = [(path / ENGINE_FILE).stat().st_size for path in whole if (path / ENGINE_FILE).exists()]
    for path in set(out.glob("run/checkpoint_*")) - whole:
        if sizes and path.is_dir() and _size(path / ENGINE_FILE) < sizes[0]:
            return path
    return None


def stopped_while_uploading(out: Path) -> list[int]:
    """The workers of a run, stopped in the middle of an upload; none if there was no upload for a while.

    They go in slow motion, some milliseconds at a time, since who looks only now and then may miss every upload.
    """
    workers, pause = train_workers() if whole_checkpoints(out) else [], threading.Event()
    for _ in range(100 if workers else 0):
        _signal(workers, signal.SIGSTOP)
        if uploading(out) is not None:
            return workers
        _signal(workers, signal.SIGCONT)
        pause.wait(0.002)
    return []


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):  # it has ended: the run is over, which the caller sees
            os.kill(process, number)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _join(address: str, out: Path, config: TrainingConfig) -> TrainResult:
    import ray

    from recsys_ray.training.on_ray import fit_on_ray

    ray.init(address=address, log_to_driver=False, configure_logging=False)
    return fit_on_ray(*towers_and_data(), config, out)


def _on_nodes(out: Path, config: TrainingConfig) -> TrainResult:
    """Two nodes of one CPU each, of which one goes away without a word."""
    import ray
    from ray.cluster_utils import Cluster

    from recsys_ray.training.on_ray import fit_on_ray

    small = {"num_cpus": 1, "object_store_memory": 100 * 1024**2}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    other = cluster.add_node(**small)
    ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)

    def lose() -> None:
        _until(lambda: len(whole_checkpoints(out)) > 0)
        cluster.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=lose)
    thread.start()
    result = fit_on_ray(*towers_and_data(), config, out)
    thread.join()
    ray.shutdown()
    cluster.shutdown()
    return result


def _until(condition: Callable[[], bool]) -> None:
    never = threading.Event()
    while not condition():
        never.wait(0.02)


def _in_process(way: str, out: Path, config: TrainingConfig) -> TrainResult:
    """Killed at the second checkpoint: before its last file, or when the older one was moved out of its place."""
    if way == "writing":
        write, times = Path.write_text, 2
        Path.write_text = _deadly(write, times)  # type: ignore[method-assign]
    else:
        rename, times = Path.rename, 3  # the first checkpoint takes one
        Path.rename = _deadly(rename, times)  # type: ignore[method-assign]
    assert LocalCheckpoints(out).newest() is None
    return fit_in_process(*towers_and_data(FEW), config, out)


def _deadly(function: Callable[..., object], times: int) -> Callable[..., object]:
    calls = iter(range(1, times + 1))

    def call(*arguments: object, **named: object) -> object:
        if next(calls) == times:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)

    return call


def main(way: str, *rest: str) -> None:
    """Train, in one of the ways, and write what came out."""
    torch.set_num_threads(1)
    *address, out, settings = rest
    config = TrainingConfig.parse(json.loads(settings))
    if way == "join":
        result = _join(address[0], Path(out), config)
    else:
        result = _on_nodes(Path(out), config) if way == "nodes" else _in_process(way, Path(out), config)
    (Path(out) / "result.json").write_text(json.dumps(outcome(result)))


if __name__ == "__main__":
    main(*sys.argv[1:])
