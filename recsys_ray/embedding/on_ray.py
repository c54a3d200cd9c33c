"""The same encoding on a cluster: Ray Data actors, each with its own copy of the model and one thread."""

import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.on_ray import quiet_data
from recsys_ray.core.progress import track
from recsys_ray.embedding.cache import FeatureCache, column_of, matrix_of
from recsys_ray.embedding.encode import Chunk, collect, embed_items, encode_chunk, plan
from recsys_ray.embedding.inputs_file import read_rows, write_inputs
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import ImageConfig, TextConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import FeatureTable, pieces_of
from recsys_ray.encoders.modality import IMAGE, TEXT, Backbone
from recsys_ray.encoders.two_tower import TwoTower, load_towers

_HASH = "hash"
_CONTENT = "content"
_ROW = "id"
_VECTOR = "vector"


@dataclass(frozen=True)
class Pool:
    """The actors that encode.

    Attributes:
        actors: How many at most; fewer start where the cluster has no room.
        cpus: Logical CPUs an actor.
        gpus: GPUs an actor; 0 encodes on the CPU.
    """

    actors: int = 2
    cpus: float = 1
    gpus: float = 0


def compute_features_on_ray(
    items: pa.Table, config: TextConfig | ImageConfig, backbone: Backbone, cache: Path, pool: Pool
) -> FeatureTable:
    """`recsys_ray.embedding.encode.compute_features` by actors. Only this process writes the cache.

    Args:
        items: The catalogue table. Pictures are opened by the actors: their paths must be good on every node.
        config: Says which modality, and what the actors load; a backbone that is a folder must be there on every node.
        backbone: The same backbone, loaded here; it names the cache.
        cache: The folder of all caches.
        pool: The actors.
    """
    modality = TEXT if isinstance(config, TextConfig) else IMAGE
    pieces = pieces_of(items, modality)
    store = FeatureCache(cache, backbone.id, backbone.dim)
    chunks = plan(pieces, store)
    if chunks:
        tables = [pa.table({_HASH: chunk.hashes, _CONTENT: chunk.contents}) for chunk in chunks]
        with quiet_data():
            encoded = ray.data.from_arrow(tables).map_batches(
                _FeatureActor,
                fn_constructor_kwargs={"config": config, "on_gpu": pool.gpus > 0},
                batch_size=None,  # a block is a chunk: the same pieces share a batch as in a single process
                batch_format="pyarrow",
                compute=_strategy(pool, len(chunks)),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
            blocks = encoded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
            for block in track(_tables(blocks), f"Encoding {modality} with {pool.actors} actors", len(chunks)):
                store.add(block.column(_HASH).to_pylist(), matrix_of(block.column(_VECTOR), backbone.dim))
    return collect(pieces, store, modality)


def embed_items_on_ray(
    towers: Path, dim: int, inputs: ItemInputs, scratch: Path, batch_size: int, pool: Pool
) -> FloatArray:
    """`recsys_ray.embedding.encode.embed_items` by actors: (N, D) unit vectors.

    Args:
        towers: Folder that `save_towers` wrote, readable on every node.
        dim: D.
        inputs: What the item tower reads of the N items.
        scratch: A folder on storage that every node reads; the inputs lie in it meanwhile.
        batch_size: Items encoded at once.
        pool: The actors.
    """
    vectors = np.zeros((len(inputs), dim), np.float32)
    starts = list(range(0, len(inputs), batch_size))
    tables = [pa.table({_ROW: np.arange(start, min(start + batch_size, len(inputs)))}) for start in starts]
    with _written(inputs, scratch) as path, quiet_data():
        embedded = ray.data.from_arrow(tables).map_batches(
            _ItemActor,
            fn_constructor_kwargs={"towers": str(towers), "inputs": str(path), "on_gpu": pool.gpus > 0},
            batch_size=None,
            batch_format="pyarrow",
            compute=_strategy(pool, len(tables)),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
        blocks = embedded.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
        for block in track(_tables(blocks), f"Embedding items with {pool.actors} actors", len(tables)):
            vectors[block.column(_ROW).to_numpy()] = matrix_of(block.column(_VECTOR), dim)
    return vectors


class _FeatureActor:
    """Holds a backbone; encodes one chunk a call."""

    def __init__(self, config: TextConfig | ImageConfig, on_gpu: bool) -> None:
        torch.set_num_threads(1)
        self._backbone = load_backbone(config).to("cuda" if on_gpu else "cpu")
        self._batch_size = config.batch_size

    def __call__(self, batch: pa.Table) -> pa.Table:
        chunk = Chunk(batch.column(_HASH).to_pylist(), batch.column(_CONTENT).to_pylist())
        hashes, vectors = encode_chunk(chunk, self._backbone, self._batch_size)
        return pa.table({_HASH: pa.array(hashes, pa.string()), _VECTOR: column_of(vectors)})


class _ItemActor:
    """Holds the towers; embeds a range of rows a call."""

    def __init__(self, towers: str, inputs: str, on_gpu: bool) -> None:
        torch.set_num_threads(1)
        self._model: TwoTower = load_towers(Path(towers)).to("cuda" if on_gpu else "cpu")
        self._inputs = Path(inputs)

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = batch.column(_ROW).to_numpy()
        inputs = read_rows(self._inputs, int(rows[0]), int(rows[-1]) + 1)
        return pa.table({_ROW: rows, _VECTOR: column_of(embed_items(self._model, inputs, len(rows)))})


def _strategy(pool: Pool, num_blocks: int) -> ray.data.ActorPoolStrategy:
    """All actors from the start, but one is enough to go on: a small cluster is slower, it does not hang."""
    most = max(1, min(pool.actors, num_blocks))
    return ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most)


def _tables(blocks: Iterable[Any]) -> Iterator[pa.Table]:
    """Ray types its batches by what they might be; these were asked for as Arrow."""
    yield from blocks


@contextmanager
def _written(inputs: ItemInputs, scratch: Path) -> Iterator[Path]:
    folder = scratch / f".inputs-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        path = folder / "inputs.safetensors"
        write_inputs(path, inputs)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)
