"""Event files to parsed rows: small logs in this process, large ones by Ray Data, with equal results."""

from pathlib import Path

import pyarrow as pa

from recsys_ray.core.progress import track
from recsys_ray.data.clean import PARSED, parse_events
from recsys_ray.data.names import source_columns
from recsys_ray.data.readers import column_names, pieces_of, read_piece
from recsys_ray.data.sources import DataConfig, find_files

PIECE_BYTES = 64 * 1024**2


def read_events(setting: str, path: str, config: DataConfig, piece_bytes: int = PIECE_BYTES) -> pa.Table:
    """Every row of an event log in the order of the input, bad ones with a reason.

    Args:
        setting: The setting that gave the path, for errors.
        path: A file, a folder or a glob.
        config: Formats, mapping, and the size above which Ray reads.
        piece_bytes: Size of the pieces that are read on their own.

    Returns:
        A table of the schema `clean.PARSED`.

    Raises:
        ConfigError: When nothing is at the path.
        DataError: When a needed column is not there.
    """
    files = find_files(setting, path, "events")
    columns = source_columns(column_names(files[0], config), config.columns, "events", str(files[0]))
    pieces = [piece for file in files for piece in pieces_of(file, config, piece_bytes)]
    if total_bytes(files) > config.ray_above_bytes:
        from recsys_ray.data.on_ray import parse_pieces  # Ray takes seconds to import

        return parse_pieces(pieces, columns, config.timestamp_unit)
    shown = track(pieces, f"Reading {setting}", len(pieces)) if len(pieces) > 1 else pieces
    return pa.concat_tables(
        [PARSED.empty_table(), *(parse_events(read_piece(piece), columns, config.timestamp_unit) for piece in shown)]
    )


def total_bytes(files: list[Path]) -> int:
    """Size on disk."""
    return sum(file.stat().st_size for file in files)
