"""One item to vectors in all spaces of a release, at once: with the towers and backbones that it was published with."""

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recsys_ray.core import schema
from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.derived import joined_text, known_tokens, standardised_by
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder, Piece, QueryEncoder, TowerQueryEncoder

if TYPE_CHECKING:
    from recsys_ray.encoders.inputs import ItemInputs


def derive(items: pa.Table, fields: Fields) -> pa.Table:
    """Original fields with the columns that prepare derives of them, but for pictures."""
    table = items.append_column(schema.TEXT, joined_text(items, fields.text))
    table = table.append_column(schema.TOKENS, known_tokens(items, fields.categorical, fields.tokens))
    if not fields.numeric:
        return table
    return table.append_column(schema.NUMERIC, standardised_by(items, fields.numeric))


def load_backbones(encoders: tuple[QueryEncoder, ...]) -> None:
    """Load now what reads the texts of items, which need not be what reads those of questions."""
    for encoder in encoders:
        encoder.of_pieces("text", ["warm up"])


def encode_item(
    encoders: tuple[QueryEncoder, ...], item: pa.Table, fields: Fields, picture: bytes | None, row: int
) -> dict[str, FloatArray]:
    """Space id to the (D,) vector of one item; spaces that read nothing of it are left out.

    Args:
        encoders: Of the release.
        item: One row, with the columns of `derive`.
        fields: What the fields are used for.
        picture: Its picture.
        row: Its row in the release, whose id the towers know; -1 for an item that came later.
    """
    text = item.column(schema.TEXT)[0].as_py()
    found: dict[str, Piece | None] = {"text": text or None, "image": picture}
    pieces = {modality: piece for modality, piece in found.items() if piece is not None}
    vectors = {}
    for encoder in encoders:
        if isinstance(encoder, TowerQueryEncoder):
            vectors[encoder.space_id] = _by_towers(encoder, item, fields, pieces, row)
        elif isinstance(encoder, FrozenQueryEncoder) and encoder.modality in pieces:
            vector = encoder.of_pieces(encoder.modality, [pieces[encoder.modality]])
            if vector is not None:
                vectors[encoder.space_id] = vector[0]
    return vectors


def _by_towers(
    encoder: TowerQueryEncoder, item: pa.Table, fields: Fields, pieces: dict[str, Piece], row: int
) -> FloatArray:
    import torch

    with torch.inference_mode():
        vectors: FloatArray = encoder.model.item_tower(_inputs(encoder, item, fields, pieces, row)).float().numpy()
    first: FloatArray = vectors[0]
    return first


def _inputs(
    encoder: TowerQueryEncoder, item: pa.Table, fields: Fields, pieces: dict[str, Piece], row: int
) -> "ItemInputs":
    """What the item tower reads of the item; a modality that it lacks is missing, as in training."""
    import torch

    from recsys_ray.encoders.inputs import ItemInputs
    from recsys_ray.encoders.item_inputs import build_item_inputs

    known = row if row < encoder.model.spec.num_items else -1
    table = build_item_inputs(item, fields, encoder.model.config, {}, id_rows=np.array([known], np.int64))
    values: dict[str, Any] = dict(table.values)
    present = dict(table.present)
    for modality, piece in pieces.items():
        arrays = encoder.read(modality, [piece])
        if arrays is not None:
            values[modality] = {name: torch.from_numpy(array) for name, array in arrays.items()}
            present[modality] = torch.ones(1, dtype=torch.bool)
    if not present:
        present[encoder.model.item_tower.names[0]] = torch.zeros(1, dtype=torch.bool)
    return ItemInputs(values, present)
