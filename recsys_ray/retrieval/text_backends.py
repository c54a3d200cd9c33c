"""What encodes the texts of questions: the backbone in torch, or what was exported from it when the release was made.

The vectors of items are those of the full model whatever is chosen here; a release says how near its exports are to it.
"""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import median
from typing import Literal

from pydantic import Field

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.artifacts import Artifact, open_artifact
from recsys_ray.core.config import Config
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.progress import say
from recsys_ray.encoders.onnx_text import FULL_FILE, INT8_FILE, OnnxFacts, load_onnx_text
from recsys_ray.retrieval.query_encoder import TextEncoder, TextLoader
from recsys_ray.retrieval.release_parts import KIND, QUERY_TEXT, backbone_folders

Backend = Literal["onnx-int8", "onnx", "torch"]
"""In the order in which they are taken where nothing was measured: what was fastest on every processor tried, first."""

Wanted = Literal["auto", "onnx-int8", "onnx", "torch"]


class TextEncoderConfig(Config):
    """What encodes the texts of questions.

    Attributes:
        backend: "torch" is the full model; "onnx" its graph in float32, which answers alike within rounding;
            "onnx-int8" the same with products in int8, which the release offers where its answers are near enough;
            "auto" is the fastest of those offered by `measured_ms`, and the first where nothing was measured.
        measured_ms: Backend to milliseconds a text; where it is empty and the backend is "auto", an application
            measures once, when it starts, and all its replicas go by that.
    """

    backend: Wanted = "auto"
    measured_ms: dict[Backend, float] = Field(default_factory=dict)


_FILES: Mapping[Backend, str] = {"onnx-int8": INT8_FILE, "onnx": FULL_FILE}
_BUDGET_S, _LEAST_ROUNDS = 1.0, 3
_MEASURE_WITHIN_S = 120.0
_TEXT = "comfortable shoes for long walks in winter"


def offered(artifact: Artifact) -> tuple[Backend, ...]:
    """What can encode the release's questions; nothing where it reads no texts."""
    if "text" not in backbone_folders(artifact.path):
        return ()
    exported = [name for name, file in _FILES.items() if f"{QUERY_TEXT}/{file}" in artifact.manifest.files]
    return (*exported, "torch")


def choose(artifact: Artifact, config: TextEncoderConfig) -> Backend | None:
    """The backend for a release; None where it reads no texts.

    Raises:
        ConfigError: When the release does not offer what is wanted.
    """
    have = offered(artifact)
    if not have:
        return None
    if config.backend == "auto":
        usable = have if _has_onnx() else have[-1:]
        return min(usable, key=lambda name: (config.measured_ms.get(name, math.inf), have.index(name)))
    if config.backend not in have:
        hint = f"Release {artifact.id} was published without it."
        raise ConfigError("text_encoder.backend", config.backend, ", ".join(("auto", *have)), hint)
    return config.backend


def text_loader(artifact: Artifact, backend: Backend | None) -> TextLoader:
    """Loads what was chosen, once."""

    @cache
    def load() -> TextEncoder | None:
        if backend is None or backend == "torch":
            return None
        return _Remembering(load_onnx_text(artifact.path / QUERY_TEXT, _FILES[backend]))

    return load


def fidelity(artifact: Artifact, backend: Backend | None) -> dict[str, float]:
    """How near the backend is to the full model, as measured when the release was made; empty for the model itself."""
    if backend is None or backend == "torch":
        return {}
    return vars(OnnxFacts.load(artifact.path / QUERY_TEXT).fidelity[_FILES[backend]])


def measure(path: Path) -> dict[Backend, float]:
    """Backend to milliseconds a text on this machine, one text a call, one thread; in turns, for about a second.

    In a process of its own, which leaves neither torch nor the models in this one and is given one thread from its
    start. Where that fails nothing is measured, aloud.

    Args:
        path: A release's directory.
    """
    have = offered(open_artifact(path, KIND))
    if len(have) < 2 or not _has_onnx():
        return {}
    command = [sys.executable, "-c", f"from {__name__} import _measure_here; _measure_here({str(path)!r})"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_MEASURE_WITHIN_S)
    except subprocess.TimeoutExpired:
        say(f"query encoder: not measured, no answer within {_MEASURE_WITHIN_S:.0f} s")
        return {}
    if done.returncode:
        say(f"query encoder: not measured, {done.stderr.strip().splitlines()[-1:]}")
        return {}
    measured: dict[Backend, float] = json.loads(done.stdout.splitlines()[-1])
    shown = ", ".join(f"{name} {ms:.2f} ms" for name, ms in sorted(measured.items(), key=lambda pair: pair[1]))
    say(f"query encoder: {shown} a text")
    return measured


def _measure_here(path: str) -> None:
    from recsys_ray.encoders.text import load_text_backbone
    from recsys_ray.encoders.threads import torch_threads

    artifact = open_artifact(Path(path), KIND)
    with torch_threads(1):
        loaded: dict[str, TextEncoder] = {
            name: load_onnx_text(artifact.path / QUERY_TEXT, _FILES[name])
            for name in offered(artifact)
            if name in _FILES
        }
        loaded["torch"] = load_text_backbone(str(backbone_folders(artifact.path)["text"]))
        measured = {name: round(ms, 3) for name, ms in _in_turns(loaded).items()}
    sys.stdout.write(json.dumps(measured) + "\n")


def _in_turns(encoders: Mapping[str, TextEncoder]) -> dict[str, float]:
    """Median milliseconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in encoders}
    for encoder in encoders.values():
        encoder.encode([_TEXT], 1)
    end = time.perf_counter() + _BUDGET_S
    rounds = 0
    while rounds < _LEAST_ROUNDS or time.perf_counter() < end:
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoder.encode([_TEXT], 1)
            taken[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return {name: median(times) for name, times in taken.items()}


class _Remembering:
    """Keeps the vectors of the last question: its towers and its frozen space read the same ones."""

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self._last: tuple[tuple[str, ...], FloatArray] = ((), self._encoder.encode([], 1))

    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        """See `TextEncoder.encode`."""
        asked, (known, vectors) = tuple(pieces), self._last  # read and set whole, so threads do not get in their way
        if asked != known:
            vectors = self._encoder.encode(pieces, batch_size)
            self._last = (asked, vectors)
        return vectors


@cache
def _has_onnx() -> bool:
    from importlib.util import find_spec

    return find_spec("onnxruntime") is not None
