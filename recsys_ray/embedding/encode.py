"""Batch encoding in this process: features of frozen backbones before training, item vectors after it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recsys_ray.core.arrays import BoolArray, FloatArray
from recsys_ray.core.errors import ArtifactError, DataError
from recsys_ray.core.progress import say, track
from recsys_ray.core.schema import ITEM_ID
from recsys_ray.embedding.cache import FeatureCache, column_of, matrix_of, write_atomically
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import FeatureTable, Pieces, pieces_of, readable
from recsys_ray.encoders.modality import Backbone
from recsys_ray.encoders.threads import torch_threads
from recsys_ray.encoders.two_tower import TwoTower

_VECTOR = "vector"
_MIN_CHUNK, _MAX_CHUNK, _CHUNKS = 128, 4096, 256


@dataclass(frozen=True)
class Chunk:
    """Pieces that are encoded together and cached together: the most that a crash can lose.

    Attributes:
        hashes: Their content hashes.
        contents: Texts, or paths of pictures.
    """

    hashes: list[str]
    contents: list[str]


def compute_features(items: pa.Table, modality: str, backbone: Backbone, cache: Path, batch_size: int) -> FeatureTable:
    """Features of a catalogue's texts or pictures; only contents that the cache has not seen are encoded.

    Args:
        items: The catalogue table.
        modality: "text" or "image".
        backbone: What encodes.
        cache: The folder of all caches; a backbone has a folder of its own in it.
        batch_size: Pieces encoded at once.
    """
    pieces = pieces_of(items, modality)
    store = FeatureCache(cache, backbone.id, backbone.dim)
    chunks = plan(pieces, store)
    with torch_threads(1):
        for chunk in track(chunks, f"Encoding {modality}", len(chunks)) if chunks else ():
            store.add(*encode_chunk(chunk, backbone, batch_size))
    return collect(pieces, store, modality)


def plan(pieces: Pieces, store: FeatureCache) -> list[Chunk]:
    """What is left to encode, in chunks; long texts first, so that a batch holds texts of like length."""
    known = store.known()
    pairs = zip(pieces.hashes, pieces.contents, strict=True)
    unseen = {name: text for name, text in pairs if name is not None and text is not None and name not in known}
    names = sorted(unseen, key=lambda name: (-len(unseen[name]), name))
    size = int(np.clip(len(names) // _CHUNKS, _MIN_CHUNK, _MAX_CHUNK))
    parts = [names[start : start + size] for start in range(0, len(names), size)]
    return [Chunk(part, [unseen[name] for name in part]) for part in parts]


def encode_chunk(chunk: Chunk, backbone: Backbone, batch_size: int) -> tuple[list[str], FloatArray]:
    """Hashes and features (n, F) of what can be read of a chunk."""
    try:
        return chunk.hashes, backbone.encode(chunk.contents, batch_size)
    except DataError:
        good = readable(chunk.contents, backbone)
    kept = Chunk(_where(chunk.hashes, good), _where(chunk.contents, good))
    return kept.hashes, backbone.encode(kept.contents, batch_size)


def collect(pieces: Pieces, store: FeatureCache, modality: str) -> FeatureTable:
    """The features of every item from the cache; says how many items have a piece that cannot be read."""
    vectors, found = store.load(pieces.hashes)
    present = np.array(found, bool) & pieces.present
    unreadable = int((pieces.present & ~present).sum())
    if unreadable:
        say(f"{modality}: {unreadable} of {int(pieces.present.sum())} cannot be read; those items count as without")
    return FeatureTable(vectors, present)


@torch.inference_mode()
def embed_items(model: TwoTower, inputs: ItemInputs, batch_size: int) -> FloatArray:
    """(N, D) unit vectors of a catalogue.

    Args:
        model: The towers; they are left in the mode (training or evaluation) in which they came.
        inputs: What the item tower reads of the N items.
        batch_size: Items encoded at once.
    """
    training = model.training
    device = next(model.parameters()).device
    vectors = np.zeros((len(inputs), model.config.width), np.float32)
    model.eval()
    for start, rows in _row_blocks(len(inputs), batch_size):
        vectors[start : start + batch_size] = model.item_tower(inputs.take(rows).to(device)).float().cpu().numpy()
    model.train(training)
    return vectors


def write_vectors(path: Path, item_ids: list[str], vectors: FloatArray) -> None:
    """Write item vectors as Parquet: `item_id` and `vector`, a list of fixed size."""
    write_atomically(pa.table({ITEM_ID: pa.array(item_ids, pa.string()), _VECTOR: column_of(vectors)}), path)


def read_vectors(path: Path) -> tuple[list[str], FloatArray]:
    """The ids and vectors (N, D) that `write_vectors` wrote.

    Raises:
        ArtifactError: When the file is not of that form.
    """
    try:
        table = pq.read_table(path, columns=[ITEM_ID, _VECTOR])
        dim = table.schema.field(_VECTOR).type.list_size
    except (OSError, pa.ArrowException, AttributeError, KeyError) as error:
        raise ArtifactError(f"{path} holds no item vectors: {error}") from None
    return table.column(ITEM_ID).to_pylist(), matrix_of(table.column(_VECTOR), dim)


def _row_blocks(count: int, size: int) -> Iterator[tuple[int, torch.Tensor]]:
    for start in range(0, count, size):
        yield start, torch.arange(start, min(start + size, count))


def _where(values: list[str], mask: BoolArray) -> list[str]:
    return [value for value, kept in zip(values, mask, strict=True) if kept]
