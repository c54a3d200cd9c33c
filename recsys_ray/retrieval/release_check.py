"""Whether a release may be served, asked in a process of its own: a broken index file can end the one that loads it.

``python -m recsys_ray.retrieval.release_check DIRECTORY REPORT`` writes a line of JSON a step, and the outcome last.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from recsys_ray.core.artifacts import MANIFEST, Artifact, open_artifact, verify
from recsys_ray.core.errors import ArtifactError, RecsysError
from recsys_ray.index.faiss_index import FAISS_FILE, import_faiss
from recsys_ray.retrieval.canary import CANARY_FILE, Canary, require
from recsys_ray.retrieval.channels.files import CHANNEL_FILE
from recsys_ray.retrieval.release import Release, assemble
from recsys_ray.retrieval.release_files import channel_names, load_release_channel, resolve_release
from recsys_ray.retrieval.release_parts import CHANNELS, KIND

TIMEOUT_S = 900.0
_STEP, _PASSED, _REFUSED = "step", "passed", "refused"
Say = Callable[[str, Any], None]


@dataclass(frozen=True)
class CheckedRelease:
    """A release that passed.

    Attributes:
        id: Its id.
        path: Its directory.
        files: How many files were hashed.
        num_bytes: Of those files.
        items: In its catalogue.
    """

    id: str
    path: Path
    files: int
    num_bytes: int
    items: int


def check_release(path: str | Path, timeout_s: float = TIMEOUT_S) -> CheckedRelease:
    """Hash every file, load the whole release and ask its canary, in a child process.

    Args:
        path: As of `resolve_release`.
        timeout_s: The longest that may take.

    Raises:
        ArtifactError: When the release does not pass, with the file or part and the reason.
    """
    directory = resolve_release(path)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.jsonl"
        report.touch()
        ended = _run_child(directory, report, timeout_s)
        lines = [json.loads(line) for line in report.read_text().splitlines()]
    outcome = lines[-1] if lines else {}
    if _PASSED in outcome:
        return CheckedRelease(**{**outcome[_PASSED], "path": directory})
    step = next((line[_STEP] for line in reversed(lines) if _STEP in line), "starting")
    reason = outcome.get(_REFUSED) or f"the process that loaded it {ended}"
    raise ArtifactError(f"release {directory} is refused while {step}: {reason}")


def _run_child(directory: Path, report: Path, timeout_s: float) -> str:
    """How the child ended, for people."""
    command = [sys.executable, "-P", "-m", __name__, str(directory), str(report)]
    # The child finds this very package, also where it came with a Ray job and is not installed.
    packages = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, packages))}
    try:
        child = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"did not end within {timeout_s:g} s"
    if child.returncode < 0:
        return f"was ended by {signal.Signals(-child.returncode).name}"
    words = child.stderr.decode(errors="replace").strip().splitlines()
    return f"ended with exit code {child.returncode}: {words[-1] if words else 'without a word'}"


def inspect(directory: Path, say: Say) -> CheckedRelease:
    """The check itself, in this process: for one that may end with it.

    Args:
        directory: Of the release.
        say: Is told what is about to be done.

    Raises:
        RecsysError: When the release does not pass; libraries that read its files may raise anything else, or crash.
    """
    say(_STEP, "reading its manifest")
    artifact = open_artifact(directory, KIND)
    say(_STEP, "hashing its files")
    verify(artifact)
    _require_listed(artifact)
    release = _load(artifact, say)
    if len(release.item_ids) == 0:
        raise ArtifactError("its catalogue has no item")
    say(_STEP, "reading a picture")
    _read_picture(release)
    say(_STEP, "asking its canary")
    require(release, _canary(artifact))
    files = len(artifact.manifest.files)
    return CheckedRelease(artifact.id, directory, files, artifact.num_bytes, len(release.item_ids))


def _canary(artifact: Artifact) -> Canary:
    if CANARY_FILE not in artifact.manifest.files:
        raise ArtifactError(
            f"it was published by an older version, without {CANARY_FILE}: publish it again with recsys-ray publish"
        )
    return Canary.load(artifact.file(CANARY_FILE))


def _read_picture(release: Release) -> None:
    """The canary has no picture, so the backbones that read pictures are tried on a small grey one."""
    content = BytesIO()
    Image.new("RGB", (32, 32), "grey").save(content, "PNG")
    for encoder in release.retriever.encoders:
        vectors = encoder.of_pieces("image", [content.getvalue()])
        if vectors is not None and not np.isfinite(vectors).all():
            raise ArtifactError(f"space {encoder.space_id}: a picture's vector is not finite")


def _require_listed(artifact: Artifact) -> None:
    """Libraries read what they find in a folder: nothing may lie there that was not hashed."""
    for path in sorted(artifact.path.rglob("*")):
        name = path.relative_to(artifact.path).as_posix()
        if path.is_symlink():
            raise ArtifactError(f"{name!r} is a link")
        if not path.is_dir() and name != MANIFEST and name not in artifact.manifest.files:
            raise ArtifactError(f"file {name!r} is not in its manifest")


def _load(artifact: Artifact, say: Say) -> Release:
    channels = {}
    with _short_lists(artifact):
        for name in channel_names(artifact):
            say(_STEP, f"loading {CHANNELS}/{name}")
            artifact.file(f"{CHANNELS}/{name}/{CHANNEL_FILE}")
            channels[name] = load_release_channel(artifact, name)
    say(_STEP, "loading towers, catalogue and histories")
    return assemble(artifact, channels)


@contextmanager
def _short_lists(artifact: Artifact) -> Iterator[None]:
    """No list in an index file is longer than the file: what claims to be would fill the memory first."""
    indexes = [entry.num_bytes for name, entry in artifact.manifest.files.items() if Path(name).name == FAISS_FILE]
    if not indexes:
        yield
        return
    faiss = import_faiss()
    before = faiss.get_deserialization_vector_byte_limit()
    faiss.set_deserialization_vector_byte_limit(max(indexes))
    try:
        yield
    finally:
        faiss.set_deserialization_vector_byte_limit(before)


def _main(directory: Path, report: Path) -> None:
    with report.open("a", buffering=1) as stream:

        def say(kind: str, value: Any) -> None:
            stream.write(json.dumps({kind: value}) + "\n")

        try:
            checked = inspect(directory, say)
        except RecsysError as error:
            say(_REFUSED, str(error))
        except Exception as error:  # whatever a broken file makes a library raise
            say(_REFUSED, f"{type(error).__name__}: {error}")
        else:
            say(_PASSED, {**asdict(checked), "path": str(checked.path)})


if __name__ == "__main__":
    _main(Path(sys.argv[1]), Path(sys.argv[2]))
