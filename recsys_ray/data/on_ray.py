"""Parsing large event logs by Ray Data: pieces of files side by side, the order of the input kept."""

from functools import partial

import pyarrow as pa
import ray
import ray.data

from recsys_ray.core.on_ray import connected
from recsys_ray.core.progress import say
from recsys_ray.core.validate import TimeUnit
from recsys_ray.data.clean import PARSED, parse_events
from recsys_ray.data.readers import Piece, read_piece

_PIECE, _ROW = "_piece", "_row"


def parse_pieces(pieces: list[Piece], columns: dict[str, str], unit: TimeUnit) -> pa.Table:
    """`clean.parse_events` of every piece, by one Ray task a piece.

    Only what looks at single rows runs here; what compares rows (duplicates, cores, splits) is vectorised in one
    process afterwards, since Ray's joins and groupings cost seconds before they start.

    Args:
        pieces: Parts of the event files, in order.
        columns: Canonical name to source column.
        unit: The unit of numeric timestamps.

    Returns:
        A table of the schema `clean.PARSED`, in the order of the pieces.
    """
    say(f"Ray Data reads the events in {len(pieces)} pieces")
    with connected():
        places = ray.data.from_items([{_PIECE: place} for place in range(len(pieces))], override_num_blocks=len(pieces))
        parse = partial(_parse, pieces=pieces, columns=columns, unit=unit)
        parsed = places.map_batches(parse, batch_size=1, batch_format="pyarrow")
        tables: list[pa.Table] = ray.get(parsed.to_arrow_refs())
    blocks = [table for table in tables if table.num_rows]
    if not blocks:
        return PARSED.empty_table()
    ordered = pa.concat_tables(blocks).sort_by([(_PIECE, "ascending"), (_ROW, "ascending")])
    return ordered.drop_columns([_PIECE, _ROW]).cast(PARSED)


def _parse(places: pa.Table, pieces: list[Piece], columns: dict[str, str], unit: TimeUnit) -> pa.Table:
    place = places.column(_PIECE)[0].as_py()
    table = parse_events(read_piece(pieces[place]), columns, unit)
    return table.append_column(_PIECE, pa.repeat(place, table.num_rows)).append_column(
        _ROW, pa.array(range(table.num_rows), pa.int64())
    )
