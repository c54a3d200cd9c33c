"""Files to Arrow tables, piece by piece: one process reads the pieces in turn, or Ray reads them side by side.

A line that cannot be parsed does not end the job: it becomes a row of nulls with its text in the column `MALFORMED`.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from recsys_ray.core.errors import DataError
from recsys_ray.data.layouts import Delimited, delimited_layout
from recsys_ray.data.sources import DataConfig, format_of

MALFORMED = "_malformed"

_PIECE_BYTES = 64 * 1024**2
_SAMPLE_BYTES = 1024**2
_BOM = b"\xef\xbb\xbf"
_SUBSTITUTE = b"\x1f"  # stands for a separator of several characters, which Arrow's reader does not know


@dataclass(frozen=True)
class Piece:
    """A part of a file that is read on its own.

    Attributes:
        path: The file.
        start: First byte, or first row group of a Parquet file.
        stop: End, exclusive; None for a compressed file, which has one piece.
        delimited: How columns are told apart; None for Parquet and JSON lines.
        parquet: Whether start and stop count row groups.
    """

    path: Path
    start: int
    stop: int | None
    delimited: Delimited | None
    parquet: bool = False


def pieces_of(path: Path, config: DataConfig, piece_bytes: int = _PIECE_BYTES) -> list[Piece]:
    """Cut a file into pieces at row boundaries.

    Raises:
        DataError: When the file cannot be read at all.
    """
    kind = format_of(path, config)
    if kind == "parquet":
        return _parquet_pieces(path, piece_bytes)
    layout = None if kind == "jsonl" else delimited_layout(path, kind, config, read_head(path))
    if _compressed(path) or path.stat().st_size <= piece_bytes or _is_json_array(path, layout):
        return [Piece(path, 0, None, layout)]
    ends = list(_line_ends(path, piece_bytes, quoted=layout is not None and layout.quoted))
    return [Piece(path, start, stop, layout) for start, stop in zip([0, *ends[:-1]], ends, strict=True)]


def read_piece(piece: Piece) -> pa.Table:
    """Read one piece. Columns of delimited files are strings; `MALFORMED` is there in every table.

    Raises:
        DataError: When the file cannot be read at all.
    """
    if piece.parquet:
        groups = list(range(piece.start, piece.stop or 0))
        table = _readable(piece.path, lambda: pq.ParquetFile(piece.path).read_row_groups(groups))
        return _with_malformed(table, {})
    data = _bytes(piece)
    if piece.delimited is None:
        return _read_json_lines(data, piece.path)
    return _read_delimited(data, piece.delimited, first=piece.start == 0)


def column_names(path: Path, config: DataConfig) -> list[str]:
    """The columns of a file, without reading all of it."""
    kind = format_of(path, config)
    if kind == "parquet":
        return list(_readable(path, lambda: pq.ParquetFile(path).schema_arrow).names)
    if kind == "jsonl":
        return [name for name in _json_sample(path).column_names if name != MALFORMED]
    return list(delimited_layout(path, kind, config, read_head(path)).names)


def _json_sample(path: Path) -> pa.Table:
    """The first lines of JSON lines; an array comes whole, since a part of it is no JSON."""
    head = read_head(path)
    if len(head) < _SAMPLE_BYTES:
        return _read_json_lines(head, path)
    if _is_json_array(path, None):
        return read_piece(Piece(path, 0, None, None))
    return _read_json_lines(head[: head.rfind(b"\n") + 1], path)


def _readable(path: Path, read: Any) -> Any:
    try:
        return read()
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} cannot be read as Parquet: {error}") from None


def _parquet_pieces(path: Path, piece_bytes: int) -> list[Piece]:
    groups = _readable(path, lambda: pq.ParquetFile(path).metadata)
    pieces, start, size = [], 0, 0
    for group in range(groups.num_row_groups):
        size += groups.row_group(group).total_byte_size
        if size >= piece_bytes:
            pieces.append(Piece(path, start, group + 1, None, parquet=True))
            start, size = group + 1, 0
    if start < groups.num_row_groups or not pieces:
        pieces.append(Piece(path, start, groups.num_row_groups, None, parquet=True))
    return pieces


def _compressed(path: Path) -> bool:
    return path.suffix.lower() in (".gz", ".bz2", ".zst", ".lz4")


def read_head(path: Path) -> bytes:
    """The first bytes of a file, decompressed: enough for the header and the columns."""
    with pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read(_SAMPLE_BYTES))


def _is_json_array(path: Path, layout: Delimited | None) -> bool:
    return layout is None and read_head(path).removeprefix(_BOM).lstrip()[:1] == b"["


def _bytes(piece: Piece) -> bytes:
    if piece.stop is None:
        with pa.input_stream(str(piece.path), compression="detect") as stream:
            return bytes(stream.read())
    with piece.path.open("rb") as stream:
        stream.seek(piece.start)
        return stream.read(piece.stop - piece.start)


def _line_ends(path: Path, piece_bytes: int, quoted: bool) -> Iterator[int]:
    """Offsets just after line ends, about `piece_bytes` apart. Inside quotes (an odd number so far) no line ends."""
    quotes = 0
    with path.open("rb") as stream:
        while block := stream.read(piece_bytes):
            quotes += block.count(b'"')
            # Go on line by line until one ends outside quotes.
            while line := stream.readline():
                quotes += line.count(b'"')
                if (not quoted or quotes % 2 == 0) and line.endswith(b"\n"):
                    break
            yield stream.tell()


def _read_delimited(data: bytes, layout: Delimited, first: bool) -> pa.Table:
    body = _decoded(data, layout)
    if first and layout.header:
        body = body[_header_end(body) :]
    separator = layout.separator
    if len(separator) > 1:
        body, separator = body.replace(separator.encode(), _SUBSTITUTE), _SUBSTITUTE.decode()
    malformed: dict[int, str] = {}

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        malformed[row.number - 1] = row.text
        return "skip"

    if not body.strip():
        return _with_malformed(pa.table({name: pa.array([], pa.string()) for name in layout.names}), {})
    table = pyarrow.csv.read_csv(
        io.BytesIO(body),
        # Row numbers are told to the handler only without threads; one block keeps every row whole.
        pyarrow.csv.ReadOptions(
            use_threads=False, column_names=layout.names, block_size=min(max(len(body), 1 << 20), 1 << 30)
        ),
        pyarrow.csv.ParseOptions(
            delimiter=separator,
            quote_char='"' if layout.quoted else False,
            newlines_in_values=layout.quoted,
            invalid_row_handler=keep,
        ),
        pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(layout.names, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=True,
            null_values=[""],
        ),
    )
    return _with_malformed(table, malformed)


def _decoded(data: bytes, layout: Delimited) -> bytes:
    data = data.removeprefix(_BOM)
    try:
        data.decode()
    except UnicodeDecodeError:
        text = data.decode("latin-1") if layout.latin else data.decode(errors="replace")
        return text.encode()
    return data


def _header_end(body: bytes) -> int:
    end = body.find(b"\n")
    return len(body) if end < 0 else end + 1


def _read_json_lines(data: bytes, path: Path) -> pa.Table:
    data = data.removeprefix(_BOM)
    if data.lstrip()[:1] == b"[":
        return _from_rows([(json.dumps(row), row) for row in _json_array(data, path)])
    if not data.strip():
        return _with_malformed(pa.table({}), {})
    try:
        options = pyarrow.json.ReadOptions(block_size=min(max(len(data), 1 << 20), 1 << 30))
        return _with_malformed(pyarrow.json.read_json(io.BytesIO(data), options), {})
    except pa.ArrowInvalid:
        # One bad line, or a field of two types, fails the whole block: go line by line.
        lines = [line for line in data.decode(errors="replace").split("\n") if line.strip()]
        return _from_rows([(line, _parsed(line)) for line in lines])


def _json_array(data: bytes, path: Path) -> list[Any]:
    try:
        rows: list[Any] = json.loads(data)
    except ValueError as error:
        raise DataError(f"{path} begins like a JSON array and is none: {error}; or write one object a line") from None
    return rows


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _from_rows(rows: list[tuple[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for _, row in rows if isinstance(row, dict) for name in row)
    good = [row for _, row in rows if isinstance(row, dict)]
    table = pa.table({name: _column([row.get(name) for row in good]) for name in names})
    if not good:  # a table without columns has no rows to put the malformed ones between
        texts = pa.array([text for text, _ in rows], pa.string())
        return pa.table({MALFORMED: texts})
    return _with_malformed(table, {place: text for place, (text, row) in enumerate(rows) if not isinstance(row, dict)})


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
        return pa.array(texts, pa.string())


def _with_malformed(table: pa.Table, malformed: dict[int, str]) -> pa.Table:
    """Put the malformed rows back where they were, as nulls with their text in `MALFORMED`."""
    if not malformed:
        return table.append_column(MALFORMED, pa.nulls(table.num_rows, pa.string()))
    total = table.num_rows + len(malformed)
    good = iter(range(table.num_rows))
    places = pa.array([None if row in malformed else next(good) for row in range(total)], pa.int64())
    texts = pa.array([malformed.get(row) for row in range(total)], pa.string())
    return table.take(places).append_column(MALFORMED, texts)
