"""Features of texts and pictures by content hash, kept on disk: what was encoded once is never encoded again.

A folder of Parquet shards a backbone. Shards are written aside and renamed, under names of their own, so that several
processes may write at once and a crash leaves whole shards only.
"""

import os
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.schema import vectors_type

_HASH = "hash"
_VECTOR = "vector"


class FeatureCache:
    """The features of one backbone.

    Args:
        root: The folder of all caches.
        backbone_id: Names the backbone; its shards lie in ``root/backbone_id``.
        dim: Length F of its features.
    """

    def __init__(self, root: Path, backbone_id: str, dim: int) -> None:
        self.folder = root / backbone_id
        self.dim = dim

    def known(self) -> set[str]:
        """The hashes that have features."""
        return {name for shard in self._shards() for name in self._read(shard, [_HASH]).column(_HASH).to_pylist()}

    def load(self, hashes: list[str | None]) -> tuple[FloatArray, list[bool]]:
        """(n, F) features by hash, zeros where unknown, and which are known."""
        wanted: dict[str, list[int]] = {}
        for row, name in enumerate(hashes):
            if name is not None:
                wanted.setdefault(name, []).append(row)
        vectors = np.zeros((len(hashes), self.dim), np.float32)
        found = [False] * len(hashes)
        for shard in self._shards():
            table = self._read(shard, [_HASH, _VECTOR])
            matrix = matrix_of(table.column(_VECTOR), self.dim)
            for row, name in enumerate(table.column(_HASH).to_pylist()):
                for target in wanted.pop(name, ()):
                    vectors[target] = matrix[row]
                    found[target] = True
        return vectors, found

    def add(self, hashes: list[str], vectors: FloatArray) -> None:
        """Write one shard; other processes may do so at the same time."""
        if not hashes:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        table = pa.table({_HASH: pa.array(hashes, pa.string()), _VECTOR: column_of(vectors)})
        write_atomically(table, self.folder / f"{uuid.uuid4().hex}.parquet")

    def _shards(self) -> list[Path]:
        return sorted(self.folder.glob("*.parquet"))

    def _read(self, shard: Path, columns: list[str]) -> pa.Table:
        try:
            return pq.read_table(shard, columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise ArtifactError(
                f"{shard} cannot be read ({error}): delete it, its features are then computed anew"
            ) from None


def column_of(vectors: FloatArray) -> pa.FixedSizeListArray:
    """(n, D) as an Arrow column."""
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, type=vectors_type(vectors.shape[1]))


def matrix_of(column: pa.ChunkedArray, dim: int) -> FloatArray:
    """An Arrow column of vectors without nulls as (n, D) float32."""
    parts = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in column.chunks]
    flat = np.concatenate(parts) if parts else np.zeros(0, np.float32)
    return np.asarray(flat, np.float32).reshape(-1, dim)


def write_atomically(table: pa.Table, path: Path) -> None:
    """Write Parquet aside, fsync, rename."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(table, aside)
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)
