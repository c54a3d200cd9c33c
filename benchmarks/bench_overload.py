"""Overload: open-loop arrivals at three times the peak, against ours and a plain Ray Serve app of the same work.

    python benchmarks/bench_overload.py [--rounds 5] [--seconds 8] [--release DIR]

Each server runs alone in a cluster of its own; the client is a process of its own on the same machine, so what it
computes is taken from the server. A round finds the peak in a closed loop, then sends Poisson arrivals at one and at
three times that peak. Goodput is what is answered 200 within the deadline. A server's figures are medians of its
rounds, as ratios to the peak of the same round.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.data.dataset import load_dataset, prepare
from recsys_ray.data.split import SplitConfig
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.two_tower import build, save_towers
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import ReleaseParts, write_release
from serve_app.run import free_port, wait_until_ready

HERE = Path(__file__).parent
DEADLINE_MS = 2000.0
CONNECTIONS = 16
SERVERS = {"plain Ray Serve": HERE / "plain_app.py", "ours": HERE / "our_app.py"}
TARGET_GOODPUT, TARGET_REFUSAL_MS = 0.75, 50.0


@dataclass(frozen=True)
class Round:
    """What one round of one server gave.

    Attributes:
        peak: Answers a second in the closed loop.
        once: Goodput at arrivals of once the peak, as a share of it.
        thrice: The same at three times.
        p95_ms: Of the good answers at three times the peak.
        refusal_p95_ms: Of the refusals there; None where there were none.
        failed: Answers there that were neither good nor refusals, as a share of all.
        degraded: Share of the good answers there that had to do without something.
        lag_ms: The client's own delay there, at the 95th percentile.
    """

    peak: float
    once: float
    thrice: float
    p95_ms: float
    refusal_p95_ms: float | None
    failed: float
    degraded: float
    lag_ms: float


def make_release(root: Path, items: int) -> Path:
    """A release of untrained towers, co-visitation and popularity: what it answers does not matter here."""
    store = ArtifactStore(root / "storage")
    data = make_synthetic(root / "raw", users=items // 10, items=items, events_per_user=20)
    dataset = load_dataset(store.publish("dataset", "d", lambda folder: prepare(data, SplitConfig(), folder), {}, {}))
    torch.manual_seed(0)
    towers = root / "towers"
    towers.mkdir()
    config = TwoTowerConfig(dim=64, text=None, image=None, vectors=None)
    model = build(config, dataset.fields, len(dataset.item_ids), {}).eval()
    space = save_towers(towers, model, {})
    vectors = embed_items(model, build_item_inputs(dataset.items, dataset.fields, config, {}), 256)
    spaces = {"towers": Space(space, vectors, vectors[:100])}
    fit = FitData(dataset.events, dataset.items, dataset.fields, spaces, None, IndexConfig(factory="exact"))
    configs = {"nearest": NearestConfig(), "co_visitation": CoVisitationConfig(), "popularity": PopularityConfig()}
    histories = root / "histories.parquet"
    write_histories(histories, dataset.user_ids.ids, dataset.events.histories, dataset.item_ids)
    parts = ReleaseParts(
        items=dataset.items,
        fields=dataset.fields,
        channels=tuple(fit_channel(name, one, fit) for name, one in configs.items()),
        fusion=Fusion.equal(list(configs), 200),
        histories=histories,
        towers=towers,
        towers_space=space,
    )
    return store.publish("release", "overload", lambda folder: write_release(folder, parts), {}, {}).path


def make_requests(file: Path, items: int) -> None:
    """Questions by histories of twenty items."""
    rng = np.random.default_rng(0)
    histories = [[f"i{item}" for item in rng.choice(items, 20, replace=False)] for _ in range(256)]
    file.write_text(json.dumps([["/v1/recommend", {"history": history, "k": 20}] for history in histories]))


@contextmanager
def serving(script: Path, release: Path, *arguments: str) -> Iterator[str]:
    """A server in a process of its own, ready."""
    port = free_port()
    process = subprocess.Popen([sys.executable, str(script), str(release), str(port), *arguments])
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_ready(address, 600)
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def load(address: str, requests: Path, how: str, much: float, seconds: float) -> dict[str, Any]:
    """Run the client and read what it says."""
    command = [sys.executable, str(HERE / "load_client.py"), address, str(requests), how, str(much), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def good(said: dict[str, Any]) -> list[float]:
    """The milliseconds of answers that came within the deadline."""
    return [ms for ms in said["milliseconds"].get("200", []) if ms <= DEADLINE_MS]


def one_round(address: str, requests: Path, seconds: float) -> Round:
    """Peak, once, thrice."""
    closed = load(address, requests, "closed", CONNECTIONS, seconds)
    peak = len(good(closed)) / seconds
    if not peak:
        sys.exit(f"no answer within {DEADLINE_MS:.0f} ms to {CONNECTIONS} clients: this machine has other work to do")
    once = load(address, requests, "open", peak, seconds)
    thrice = load(address, requests, "open", 3 * peak, seconds)
    in_time = good(thrice)
    refusals = thrice["milliseconds"].get("429", [])
    answered = len(thrice["milliseconds"].get("200", []))
    return Round(
        peak=peak,
        once=len(good(once)) / seconds / peak,
        thrice=len(in_time) / seconds / peak,
        p95_ms=float(np.percentile(in_time, 95)) if in_time else float("nan"),
        refusal_p95_ms=float(np.percentile(refusals, 95)) if refusals else None,
        failed=1 - (len(in_time) + len(refusals)) / max(thrice["sent"], 1),
        degraded=1 - thrice["undegraded"] / max(answered, 1),
        lag_ms=thrice["lag_ms"],
    )


def report(name: str, rounds: list[Round]) -> tuple[float, float]:
    """Print a server's medians; goodput at three times the peak, and the 95th percentile of refusals."""

    def middle(field: str) -> float:
        found = [value for one in rounds if (value := getattr(one, field)) is not None]
        return median(found) if found else float("nan")

    print(
        f"{name}: peak {middle('peak'):.0f}/s; at 1x goodput {middle('once'):.2f}; "
        f"at 3x goodput {middle('thrice'):.2f}, p95 {middle('p95_ms'):.0f} ms, "
        f"refusals' p95 {middle('refusal_p95_ms'):.1f} ms, late or lost {middle('failed'):.1%}, "
        f"degraded {middle('degraded'):.1%}; client's own lag "
        f"{middle('lag_ms'):.1f} ms",
        flush=True,
    )
    return middle("thrice"), middle("refusal_p95_ms")


def main() -> int:
    """Measure and print; the exit code is 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--only", choices=sorted(SERVERS))
    parser.add_argument("--release", type=Path, help="a release made by an earlier run with as many items")
    settings = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        requests = Path(folder) / "requests.json"
        make_requests(requests, settings.items)
        release = settings.release or make_release(Path(folder), settings.items)
        for name, script in SERVERS.items():
            if settings.only in (None, name):
                with serving(script, release) as address:
                    load(address, requests, "closed", CONNECTIONS, 2.0)  # warm
                    rounds = [one_round(address, requests, settings.seconds) for _ in range(settings.rounds)]
                found[name] = report(name, rounds)
    if "ours" not in found:
        return 0
    goodput, refusal_ms = found["ours"]
    met = [goodput >= TARGET_GOODPUT, refusal_ms <= TARGET_REFUSAL_MS]
    print(f"goodput at 3x: ours {goodput:.2f}, target {TARGET_GOODPUT}: {'met' if met[0] else 'MISSED'}")
    print(f"429s' p95: ours {refusal_ms:.1f} ms, target {TARGET_REFUSAL_MS:.0f}: {'met' if met[1] else 'MISSED'}")
    print(f"met {sum(met)} of {len(met)}")
    return 0 if all(met) else 1


if __name__ == "__main__":
    sys.exit(main())
