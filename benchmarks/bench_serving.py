"""The application against the same work by hand in plain uvicorn, and against itself on Ray Serve's defaults.

    python benchmarks/bench_serving.py [--rounds 5] [--seconds 3] [--items 2000] [--release DIR]

Three phases, one Ray cluster at a time: collapsed behind HAProxy as the command line starts it, the same application
on Ray Serve's own proxy and settings, and composed. In each the server by hand (`by_hand.py`) runs beside it and takes
turns with it, so that every figure is a ratio of neighbouring seconds; figures are medians of the rounds. The client is
a process of its own on the same machine. "text": a text, a history of five, a filter, three channels. "history": the
same without text and filter, so that no model is asked.
"""

import argparse
import json
import os
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from bench_overload import HERE, load, serving
from serving_release import make_release

from recsys_ray.retrieval.fusion import combine
from recsys_ray.retrieval.release import Question, load_release
from serve_app.api import RecommendRequest

WORDS = ("old", "rich", "cold", "warm", "short", "loud", "garden", "rocket", "city", "river")
ROUTES, CLIENTS = ("text", "history"), (1, 8)


@dataclass(frozen=True)
class Figures:
    """Of one server in one round on one route with so many clients."""

    p50_ms: float
    p99_ms: float
    per_s: float


class Targets:
    """Prints each target and counts those met."""

    def __init__(self) -> None:
        self.met = self.total = 0

    def check(self, name: str, peer: str, ours: str, figure: float, target: str, met: bool) -> None:
        """One line."""
        self.total, self.met = self.total + 1, self.met + met
        verdict = "met" if met else "MISSED"
        print(f"{name}: target {target}, peer {peer}, ours {ours}, {figure:.3f}: {verdict}", flush=True)


def write_requests(folder: Path, release: Path) -> dict[str, Path]:
    """Questions by route, the same for every server."""
    rng = np.random.default_rng(0)
    loaded = load_release(release)
    category = sorted(set(loaded.items["category"].to_pylist()))
    files = {}
    for route in ROUTES:
        asked = []
        for _ in range(256):
            body: dict[str, Any] = {"history": rng.choice(loaded.item_ids.ids, 5, replace=False).tolist(), "k": 20}
            if route == "text":
                body["text"] = " ".join(rng.choice(WORDS, 3, replace=False))
                body["filters"] = {"op": "equals", "field": "category", "value": str(rng.choice(category))}
            asked.append(["/v1/recommend", body])
        files[route] = folder / f"{route}.json"
        files[route].write_text(json.dumps(asked))
    return files


def measure(address: str, file: Path, clients: int, seconds: float) -> Figures:
    """One closed loop."""
    said = load(address, file, "closed", clients, seconds)
    times = said["milliseconds"].get("200", [])
    if len(times) < said["sent"] - clients or not times:
        raise SystemExit(
            f"{address} did not answer all: { {key: len(ms) for key, ms in said['milliseconds'].items()} }"
        )
    return Figures(float(np.percentile(times, 50)), float(np.percentile(times, 99)), len(times) / seconds)


def phase(
    name: str, release: Path, arguments: tuple[str, ...], files: dict[str, Path], options: argparse.Namespace
) -> tuple[dict[tuple[str, int], list[tuple[Figures, Figures]]], dict[str, Any], list[dict[str, float]]]:
    """By hand and ours in turns: route and clients to a pair a round; ours' status; timings of single answers."""
    found: dict[tuple[str, int], list[tuple[Figures, Figures]]] = {}
    with serving(HERE / "by_hand.py", release) as hand, serving(HERE / "our_app.py", release, *arguments) as ours:
        for address in (hand, ours):
            for file in files.values():
                load(address, file, "closed", 8, 1.0)
        for _ in range(options.rounds):
            for route, file in files.items():
                for clients in CLIENTS:
                    pair = tuple(measure(address, file, clients, options.seconds) for address in (hand, ours))
                    found.setdefault((route, clients), []).append(pair)  # type: ignore[arg-type]
        status = json.loads(urllib.request.urlopen(f"{ours}/v1/status").read())
        timings = [ask(ours, body)["timings_ms"] for _, body in json.loads(files["text"].read_text())[:100]]
    for (route, clients), pairs in found.items():
        shown = [
            f"p50 {of(pairs, i, 'p50_ms'):.2f} p99 {of(pairs, i, 'p99_ms'):.2f} ms {of(pairs, i, 'per_s'):.0f}/s"
            for i in (0, 1)
        ]
        print(f"{name}, {route}, {clients} clients: by hand {shown[0]}; ours {shown[1]}", flush=True)
    return found, status, timings


def of(pairs: list[tuple[Figures, Figures]], which: int, field: str) -> float:
    """The median of one server's figure."""
    return median(getattr(pair[which], field) for pair in pairs)


def ratio(pairs: list[tuple[Figures, Figures]], field: str) -> float:
    """The median of ours / by hand."""
    return median(getattr(ours, field) / getattr(hand, field) for hand, ours in pairs)


def ask(address: str, body: dict[str, Any]) -> dict[str, Any]:
    """One answer."""
    request = urllib.request.Request(
        f"{address}/v1/recommend", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    answer: dict[str, Any] = json.loads(urllib.request.urlopen(request).read())
    return answer


def own_code_ms(release: Path, body: dict[str, Any]) -> float:
    """Median milliseconds of all that is neither HTTP nor a stage: validation, ids, filter, fusion, items, JSON."""
    loaded = load_release(release)
    raw = json.dumps(body).encode()

    def asked() -> Question:
        parsed = RecommendRequest.model_validate_json(raw)
        filters = None if parsed.filters is None else parsed.filters.plain()
        return loaded.question(history=parsed.history, text=parsed.text, filters=filters)

    question, fusion = asked(), loaded.retriever.fusion
    encoded = loaded.retriever.encode(question.queries)
    lists = {name: channel.retrieve(encoded, fusion.depth) for name, channel in loaded.retriever.channels.items()}
    taken = []
    for _ in range(1000):
        start = time.perf_counter()
        asked()
        items = [vars(one) for one in loaded.answer(combine(lists, fusion, body["k"]))]
        json.dumps({"items": items}, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        taken.append((time.perf_counter() - start) * 1e3)
    return median(taken)


def main() -> int:
    """Print every target; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--items", type=int, default=2000)
    parser.add_argument("--release", type=Path, help="a release that serving_release.py made")
    options = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    targets = Targets()
    with tempfile.TemporaryDirectory() as name:
        release = options.release or make_release(Path(name), options.items)
        files = write_requests(Path(name), release)
        run: Callable[..., Any] = lambda label, *how: phase(label, release, how, files, options)  # noqa: E731
        fast, status, _ = run("collapsed, HAProxy", "collapsed", "haproxy")
        print(f"texts by {status['text_encoder']['backend']}, measured {status['text_encoder']['measured_ms']}")
        slow, _, _ = run("collapsed, Ray Serve's defaults", "collapsed", "python")
        apart, _, timings = run("composed, HAProxy", "composed", "haproxy")
        # Without text, so that each of the three lists is as long as it can be; the filter would shorten them.
        body = json.loads(files["history"].read_text())[0][1]
        own = own_code_ms(release, body)
    report(targets, fast, slow)
    report_composed(targets, fast, apart, timings)
    targets.check("own code of an answer, ms", "-", f"{own:.3f}", own, "<= .3", own <= 0.3)
    print(f"met {targets.met} of {targets.total}")
    return int(targets.met < targets.total)


def report(targets: Targets, fast: Any, slow: Any) -> None:
    """Against the peer by hand, and against the defaults through it."""
    one, eight = fast["text", 1], fast["text", 8]
    for field, label, most in (("p50_ms", "p50", 1.25), ("p99_ms", "p99", 1.75)):
        figure = ratio(one, field)
        shown = f"{of(one, 0, field):.2f} ms", f"{of(one, 1, field):.2f} ms"
        targets.check(f"text, one client, {label}: x by hand", *shown, figure, f"<= {most}", figure <= most)
    figure = ratio(eight, "per_s")
    shown = f"{of(eight, 0, 'per_s'):.0f}/s", f"{of(eight, 1, 'per_s'):.0f}/s"
    targets.check("text, eight clients, answers/s: x by hand", *shown, figure, ">= .8", figure >= 0.8)
    for route, least in (("text", 2), ("history", 8)):
        figure = ratio(fast[route, 8], "per_s") / ratio(slow[route, 8], "per_s")
        shown = f"{of(slow[route, 8], 1, 'per_s'):.0f}/s", f"{of(fast[route, 8], 1, 'per_s'):.0f}/s"
        label = f"{route}, eight clients, answers/s: x Ray Serve's defaults"
        targets.check(label, *shown, figure, f">= {least}", figure >= least)


def report_composed(targets: Targets, fast: Any, apart: Any, timings: list[dict[str, float]]) -> None:
    """What a hop costs, and whether channels wait for each other."""
    together, composed = of(fast["text", 1], 1, "p50_ms"), of(apart["text", 1], 1, "p50_ms")
    hop = (composed - together) / 2  # the encoder, then all channels at once
    targets.check("composed, ms a hop", f"{together:.2f}", f"{composed:.2f}", hop, "<= 2.5", hop <= 2.5)
    outside = ("encoder", "fusion", "total")
    channels = [[ms for stage, ms in one.items() if stage not in outside] for one in timings]
    waited = median(one["total"] - one["encoder"] - one["fusion"] for one in timings)
    longest, summed = median(map(max, channels)), median(map(sum, channels))
    met = abs(waited - longest) < abs(waited - summed)
    shown = f"longest {longest:.2f}, sum {summed:.2f} ms", f"{waited:.2f} ms"
    targets.check(
        "composed, channels in parallel: x the longest", *shown, waited / longest, "nearer 1 than the sum", met
    )


if __name__ == "__main__":
    raise SystemExit(main())
