"""From the catalogue and its features to what the item tower reads."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from recsys_ray.core import schema
from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray
from recsys_ray.core.errors import DataError
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs, ModalityInputs
from recsys_ray.encoders.modality import ATTRIBUTES, ID, TEXT, Backbone, vectors_modality
from recsys_ray.encoders.text import TextBackbone
from recsys_ray.encoders.two_tower import vector_columns

Arrays = dict[str, npt.NDArray[np.generic]]

_BLOCK = 256  # pieces preprocessed at once where a backbone is trained


@dataclass(frozen=True)
class FeatureTable:
    """Vectors of n items, of which some may have none.

    Attributes:
        vectors: (n, F) float32, zeros where absent.
        present: (n,) bool.
    """

    vectors: FloatArray
    present: BoolArray


@dataclass(frozen=True)
class Pieces:
    """What one modality has of each of n items.

    Attributes:
        contents: A text, or the path of a picture; None where the item has none.
        hashes: sha256 of the content; None where the item has none.
    """

    contents: list[str | None]
    hashes: list[str | None]

    @property
    def present(self) -> BoolArray:
        """(n,) who has one."""
        return np.array([content is not None for content in self.contents], bool)


def pieces_of(items: pa.Table, modality: str) -> Pieces:
    """The texts or pictures of a catalogue table."""
    if modality == TEXT:
        texts = [text or None for text in items.column(schema.TEXT).to_pylist()]
        return Pieces(texts, [None if text is None else hash_text(text) for text in texts])
    return Pieces(items.column(schema.IMAGE).to_pylist(), items.column(schema.IMAGE_HASH).to_pylist())


def hash_text(text: str) -> str:
    """Hex sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def build_item_inputs(
    items: pa.Table,
    fields: Fields,
    config: TwoTowerConfig,
    features: Mapping[str, FeatureTable],
    backbones: Mapping[str, Backbone] | None = None,
    id_rows: IntArray | None = None,
) -> ItemInputs:
    """What the item tower reads of a catalogue, on the CPU.

    Args:
        items: The catalogue table of a dataset.
        fields: What its fields are used for.
        config: Which modalities are read.
        features: Modality name to frozen features of the same items.
        backbones: Modality name to the backbone that is trained with the towers, see `trained_backbones`.
        id_rows: Row of each item in the id residual, -1 for items that training did not know. By default 0 … n - 1.
    """
    values: dict[str, ModalityInputs] = {}
    present: dict[str, Tensor] = {}

    def add(name: str, tensors: ModalityInputs, mask: BoolArray) -> None:
        values[name] = tensors
        present[name] = torch.from_numpy(mask)

    for name, backbone in (backbones or {}).items():
        add(name, *_pieces(pieces_of(items, name), backbone))
    for name, table in features.items():
        if name not in values:
            add(name, {"vector": torch.from_numpy(table.vectors)}, table.present)
    for column in vector_columns(config, fields):
        vectors, mask = _vectors(items.column(column), fields.vectors[column])
        add(vectors_modality(column), {"vector": torch.from_numpy(vectors)}, mask)
    if config.attributes is not None:
        add(ATTRIBUTES, *_attributes(items, fields, config.attributes.max_tokens))
    if config.id is not None:
        rows = np.arange(len(items), dtype=np.int64) if id_rows is None else id_rows
        add(ID, {"row": torch.from_numpy(rows.clip(min=0))}, rows >= 0)
    return ItemInputs(values, present)


def token_words(items: pa.Table, backbone: TextBackbone) -> Tensor:
    """(2, N, L) the word and the line of each token in the inputs of a trained backbone, see `TextBackbone.words`."""
    pieces = pieces_of(items, TEXT)
    rows = np.flatnonzero(pieces.present)
    blocks = [(some, backbone.words([str(pieces.contents[row]) for row in some])) for some in _blocks(rows)]
    width = max([backbone.blank()["input_ids"].shape[1], *(words.shape[2] for _, words in blocks)]) if blocks else 1
    found = np.full((2, len(items), width), -1, np.int16)
    for some, words in blocks:
        found[:, some, : words.shape[2]] = words
    return torch.from_numpy(found)


def readable(pieces: Sequence[str], backbone: Backbone) -> BoolArray:
    """(n,) which pieces the backbone can preprocess; asked one by one, so only where a batch of them failed."""
    return np.array([_is_readable(piece, backbone) for piece in pieces], bool)


def _is_readable(piece: str, backbone: Backbone) -> bool:
    try:
        backbone.preprocess([piece])
    except DataError:
        return False
    return True


def _pieces(pieces: Pieces, backbone: Backbone) -> tuple[ModalityInputs, BoolArray]:
    """Preprocess all that can be read; absent rows are zeros."""
    rows = np.flatnonzero(pieces.present)
    present = np.zeros(len(pieces.contents), bool)
    blocks: list[tuple[IntArray, Arrays]] = []
    for some in _blocks(rows):
        good, arrays = _preprocess(some, [str(pieces.contents[row]) for row in some], backbone)
        present[good] = True
        blocks.append((good, arrays))
    merged = _merge(blocks, backbone.blank(), len(present))
    return {name: torch.from_numpy(array) for name, array in merged.items()}, present


def _blocks(rows: IntArray) -> list[IntArray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _preprocess(rows: IntArray, contents: list[str], backbone: Backbone) -> tuple[IntArray, Arrays]:
    """Which of the rows can be read, and their arrays."""
    try:
        return rows, backbone.preprocess(contents)
    except DataError:
        good = readable(contents, backbone)
    kept = [content for content, mask in zip(contents, good, strict=True) if mask]
    return rows[good], backbone.preprocess(kept) if kept else {}


def _merge(blocks: list[tuple[IntArray, Arrays]], blank: Arrays, count: int) -> Arrays:
    """One array a name over all rows, zeros where nothing was read, and as long as the longest text."""
    merged: Arrays = {}
    for name, example in blank.items():
        shapes = [arrays[name].shape[1:] for _, arrays in blocks if arrays] or [example.shape[1:]]
        out = np.zeros((count, *np.max(shapes, axis=0)), example.dtype)
        for rows, arrays in blocks:
            if arrays:
                part = out[:, : arrays[name].shape[1]] if example.ndim == 2 else out
                part[rows] = arrays[name]
        merged[name] = out
    return merged


def _vectors(column: pa.ChunkedArray, dim: int) -> tuple[FloatArray, BoolArray]:
    """A column of vectors as a matrix; null, and vectors with a value that is no number, count as missing."""
    present = _numpy(pc.fill_null(pc.equal(pc.list_value_length(column), dim), False)).astype(bool)
    flat = _numpy(pc.list_flatten(column.filter(pa.array(present)))).astype(np.float32)
    vectors = np.zeros((len(column), dim), np.float32)
    vectors[present] = flat.reshape(-1, dim)
    present &= np.isfinite(vectors).all(1)
    vectors[~present] = 0
    return vectors, present


def _attributes(items: pa.Table, fields: Fields, max_tokens: int) -> tuple[ModalityInputs, BoolArray]:
    tokens = _padded(items.column(schema.TOKENS), max_tokens)
    if not fields.numeric:
        return {"tokens": torch.from_numpy(tokens)}, _any(tokens > 0)
    numeric, _ = _vectors(items.column(schema.NUMERIC), len(fields.numeric))
    tensors = {"tokens": torch.from_numpy(tokens), "numeric": torch.from_numpy(numeric)}
    return tensors, _any(np.concatenate([tokens > 0, numeric != 0], axis=1))


def _padded(column: pa.ChunkedArray, width: int) -> npt.NDArray[np.int32]:
    """The first `width` values of each list, zeros after them."""
    lengths = _numpy(pc.fill_null(pc.list_value_length(column), 0)).astype(np.int64)
    values = _numpy(pc.list_flatten(column)).astype(np.int32)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(values)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    kept = places < width
    padded = np.zeros((len(lengths), min(width, max(1, int(lengths.max(initial=0))))), np.int32)
    padded[rows[kept], places[kept]] = values[kept]
    return padded


def _any(mask: npt.NDArray[np.bool_]) -> BoolArray:
    """(n,) whether any of a row is true."""
    return np.asarray(mask.any(axis=1), bool)


def _numpy(column: pa.ChunkedArray | pa.Array) -> npt.NDArray[Any]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    values: npt.NDArray[Any] = array.to_numpy(zero_copy_only=False)
    return values
