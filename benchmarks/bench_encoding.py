"""Encoding texts against sentence-transformers: one at a time, in bulk, and what the vectors lose.

    python benchmarks/bench_encoding.py [--texts 600] [--rounds 5] [--data FILE.parquet]

Both encode the same texts with the packaged MiniLM at one thread, in turns in one process; figures are medians of the
rounds. The texts are those of a made-up catalogue, or the title and description of a Parquet file of items. Recall@10
is that of finding an item by the first half of its own text among all texts, whose vectors are those of the full model
on both sides.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from recsys_ray.core.arrays import FloatArray
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.encoders.export import export_backbones
from recsys_ray.encoders.onnx_export import export_text
from recsys_ray.encoders.onnx_text import FULL_FILE, INT8_FILE, load_onnx_text
from recsys_ray.encoders.text import load_text_backbone

SINGLE, BATCH = 40, 32
OURS = "int8"
Encode = Callable[[Sequence[str]], FloatArray]


def texts_of(path: Path | None, count: int, folder: Path) -> list[str]:
    """Of the file, or of a made-up catalogue; seeded."""
    if path is None:
        path = Path(make_synthetic(folder / "raw", users=10, items=count, events_per_user=2).items or "")
    table = pq.read_table(path)
    columns = [table.column(name).to_pylist() for name in ("title", "description") if name in table.column_names]
    texts = [". ".join(str(part) for part in parts if part) for parts in zip(*columns, strict=True)]
    found = sorted({text for text in texts if text})
    return [found[row] for row in np.random.default_rng(0).permutation(len(found))[:count].tolist()]


def encoders(folder: Path, texts: list[str]) -> dict[str, Encode]:
    """The peer first, then ours: the full model in torch, its graph, and the graph in int8."""
    from sentence_transformers import SentenceTransformer

    backbone = load_text_backbone("package:minilm", precision="fp32")
    backbone.save(folder / "text")
    export_backbones({"text": folder / "text"}, folder / "hub")
    (folder / "onnx").mkdir()
    print(export_text(folder / "text", texts, folder / "onnx"), flush=True)
    peer: Any = SentenceTransformer(str(folder / "hub" / "text"), device="cpu", local_files_only=True)
    full, int8 = load_onnx_text(folder / "onnx", FULL_FILE), load_onnx_text(folder / "onnx", INT8_FILE)
    return {
        "sentence-transformers": lambda some: peer.encode(list(some), batch_size=BATCH, show_progress_bar=False),
        "torch": lambda some: backbone.encode(some, BATCH),
        "fp32 graph": lambda some: full.encode(some, BATCH),
        OURS: lambda some: int8.encode(some, BATCH),
    }


def in_turns(found: dict[str, Encode], batches: Sequence[Sequence[str]], rounds: int) -> dict[str, float]:
    """Median seconds a text of each, over rounds; within a round they alternate batch by batch."""
    taken: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        seconds = dict.fromkeys(found, 0.0)
        for batch in batches:
            for name, encode in found.items():
                start = time.perf_counter()
                encode(batch)
                seconds[name] += time.perf_counter() - start
        for name, spent in seconds.items():
            taken[name].append(spent / sum(map(len, batches)))
    return {name: median(times) for name, times in taken.items()}


def recall(questions: FloatArray, vectors: FloatArray) -> float:
    """Share of questions with their own text among the ten nearest."""
    scores = questions @ vectors.T
    own = scores[np.arange(len(questions)), np.arange(len(questions))]
    return float(((scores > own[:, None]).sum(1) < 10).mean())


class Targets:
    """Prints each target and counts those met."""

    def __init__(self) -> None:
        self.met = self.total = 0

    def check(self, name: str, peer: str, ours: str, figure: float, target: str, met: bool) -> None:
        """One line."""
        self.total, self.met = self.total + 1, self.met + met
        verdict = "met" if met else "MISSED"
        print(f"{name}: target {target}, peer {peer}, ours {ours}, {figure:.4f}: {verdict}", flush=True)


def bench_speed(targets: Targets, found: dict[str, Encode], texts: list[str], rounds: int) -> None:
    """One text a call, and all of them in one."""
    single = in_turns(found, [[text] for text in texts[:SINGLE]], rounds)
    bulk = in_turns(found, [texts], rounds)
    for name, unit, times, least in (("one text", 1e3, single, 6), ("bulk", 1e3, bulk, 4)):
        print(f"{name}, ms a text: " + ", ".join(f"{one} {s * unit:.3f}" for one, s in times.items()), flush=True)
        peer, ours = times["sentence-transformers"], times[OURS]
        shown = f"{peer * unit:.2f} ms", f"{ours * unit:.2f} ms"
        targets.check(f"{name}: x sentence-transformers", *shown, peer / ours, f">= {least}", peer / ours >= least)


def bench_nearness(targets: Targets, found: dict[str, Encode], texts: list[str]) -> None:
    """Cosines to the peer's vectors, and recall."""
    full, ours = np.asarray(found["sentence-transformers"](texts)), found[OURS](texts)
    cosines = (full * ours).sum(1)
    mean, least = float(cosines.mean()), float(cosines.min())
    targets.check("mean cosine", "1", f"{mean:.4f}", mean, ">= .99", mean >= 0.99)
    targets.check("least cosine", "1", f"{least:.4f}", least, ">= .97", least >= 0.97)
    halves = [" ".join(text.split()[: (len(text.split()) + 1) // 2]) for text in texts]
    before, after = (recall(np.asarray(found[name](halves)), full) for name in ("sentence-transformers", OURS))
    loss = (before - after) / before
    targets.check("recall@10 lost", f"{before:.4f}", f"{after:.4f}", loss, "<= .01", loss <= 0.01)


def main() -> int:
    """Print every target; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    targets = Targets()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = texts_of(options.data, options.texts, folder)
        found = encoders(folder, texts)
        words = median(len(text.split()) for text in texts)
        print(f"{len(texts)} texts of {words:.0f} words, one thread, {options.rounds} rounds", flush=True)
        bench_speed(targets, found, texts, options.rounds)
        bench_nearness(targets, found, texts)
    print(f"met {targets.met} of {targets.total}")
    return int(targets.met < targets.total)


if __name__ == "__main__":
    raise SystemExit(main())
