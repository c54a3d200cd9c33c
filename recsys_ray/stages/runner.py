"""Running a stage: find its artifact, or make and publish it, telling a person which of the two happened."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from recsys_ray.core.artifacts import Artifact, ArtifactStore, artifact_id
from recsys_ray.core.progress import say

SECONDS = "seconds"


class StageRunner:
    """Makes artifacts in a store, each at most once.

    Attributes:
        store: Where artifacts are found and published.
        made: Label to artifact, in the order the stages ran; what a run consists of.
    """

    def __init__(self, root: Path) -> None:
        self.store = ArtifactStore(root)
        self.made: dict[str, Artifact] = {}

    def run(
        self,
        kind: str,
        version: int,
        settings: Mapping[str, Any],
        parents: Mapping[str, Artifact],
        write: Callable[[Path], Mapping[str, Any]],
        label: str = "",
        inputs: str = "",
    ) -> Artifact:
        """The artifact of a stage, made by `write` only when no artifact with its id is there.

        Args:
            kind: The kind of artifact.
            version: The stage's version, raised when its code changes the result.
            settings: The settings that change the result.
            parents: Role to artifact.
            write: Fills an empty directory, returns the summary.
            label: What people read; the kind when empty.
            inputs: Content digest of raw input files.
        """
        label = label or kind
        parent_ids = {role: artifact.id for role, artifact in parents.items()}
        key = self.key(kind, version, settings, parents, inputs)
        artifact = self.store.find(kind, key)
        if artifact is None:
            say(f"▶ {label}")
            with self.store.alone(kind, key):  # another run may be making the same: then it is waited for
                artifact = self.store.find(kind, key) or self.store.publish(
                    kind, key, _timed(write), settings, parent_ids
                )
            say(f"✔ {label} in {artifact.summary[SECONDS]:.1f} s")
        else:
            say(f"✔ {label}: nothing changed, reused {key}")
        self.made[label] = artifact
        return artifact

    def has(self, kind: str, version: int, settings: Mapping[str, Any], parents: Mapping[str, Artifact]) -> bool:
        """Whether `run` would find the artifact."""
        return self.store.find(kind, self.key(kind, version, settings, parents)) is not None

    def key(
        self, kind: str, version: int, settings: Mapping[str, Any], parents: Mapping[str, Artifact], inputs: str = ""
    ) -> str:
        """The id that `run` gives the artifact."""
        parent_ids = {role: artifact.id for role, artifact in parents.items()}
        return artifact_id(kind, version, settings, parent_ids, inputs)

    @property
    def seconds(self) -> dict[str, float]:
        """Label to the seconds its artifact took when it was made, also where it is reused now."""
        return {label: float(artifact.summary[SECONDS]) for label, artifact in self.made.items()}


def _timed(write: Callable[[Path], Mapping[str, Any]]) -> Callable[[Path], Mapping[str, Any]]:
    def timed(directory: Path) -> Mapping[str, Any]:
        start = time.perf_counter()
        summary = dict(write(directory))
        return {**summary, SECONDS: round(time.perf_counter() - start, 3)}

    return timed
