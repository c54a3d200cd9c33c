"""Tables of items and users: read, typed, one row an id."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import schema, validate
from recsys_ray.core.errors import DataError
from recsys_ray.data.layouts import U_GENRES, delimited_layout
from recsys_ray.data.names import PICTURE, TITLE, source_columns
from recsys_ray.data.readers import MALFORMED, column_names, pieces_of, read_head, read_piece
from recsys_ray.data.rejected import Rejected, places
from recsys_ray.data.roles import are_web_addresses
from recsys_ray.data.sources import DataConfig, Role, find_files, format_of

_NULL_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "\\N")
_DERIVED = (schema.TEXT, schema.IMAGE, schema.IMAGE_HASH, schema.TOKENS, schema.NUMERIC)
_ID_COLUMN: dict[Role, str] = {"items": schema.ITEM_ID, "users": schema.USER_ID}
_DUPLICATE: dict[Role, str] = {"items": validate.DUPLICATE_ITEM, "users": validate.DUPLICATE_USER}
_MISSING: dict[Role, str] = {"items": validate.MISSING_ITEM, "users": validate.MISSING_USER}


@dataclass(frozen=True)
class Catalogue:
    """A table with one row an id.

    Attributes:
        table: The id column first, then the source's fields.
        lines: Each row's position in the input.
        rows_in: Rows that came.
        title: The field shown to people, if any.
        image: The column with picture paths or bytes, if any.
    """

    table: pa.Table
    lines: pa.Array
    rows_in: int
    title: str | None = None
    image: str | None = None


def read_catalogue(setting: str, path: str, role: Role, config: DataConfig, rejected: Rejected) -> Catalogue:
    """Read a table of items or users; rows without an id, and all but the first of an id, are rejected.

    Args:
        setting: The setting that gave the path, for errors.
        path: A file, a folder or a glob.
        role: "items" or "users".
        config: Formats and mapping.
        rejected: Takes the rejected rows; the caller settles the source.

    Raises:
        ConfigError: When nothing is at the path.
        DataError: When a needed column is not there, or a column has a reserved name.
    """
    files = find_files(setting, path, role)
    columns = source_columns(column_names(files[0], config), config.columns, role, str(files[0]))
    table = _together([_read(file, columns, config) for file in files], setting, path)
    table = _renamed(table, columns[_ID_COLUMN[role]], _ID_COLUMN[role], files[0])
    good = _unique_ids(table, role, rejected)
    kept = table.filter(pa.array(good)).drop_columns([MALFORMED])
    title, image = columns.get(TITLE), columns.get(PICTURE)
    if image is not None and config.columns.image is None and are_web_addresses(kept.column(image)):
        image = None  # found by its name only: pictures are read from files, never fetched
    return Catalogue(kept, pa.array(places(good)), table.num_rows, title, image)


def typed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text that is all whole numbers, numbers or truth values becomes that; other text stays as it is.

    Codes with leading zeros stay text, and a column of numbers may use the usual words for a missing value.
    """
    blank = pc.is_in(pc.utf8_trim_whitespace(column), value_set=pa.array(_NULL_TEXTS))
    values = pc.if_else(blank, None, pc.utf8_trim_whitespace(column))
    padded = pc.any(pc.match_substring_regex(values, r"^-?0\d")).as_py()
    if values.null_count == len(values) or padded:
        return column
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return _whole(pc.cast(values, kind))
        except pa.ArrowInvalid:
            continue
    return column


def _whole(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Floats without a fraction are integers: tools write 1995.0 where a value is missing elsewhere."""
    if not pa.types.is_floating(numbers.type):
        return numbers
    try:
        return pc.cast(numbers, pa.int64())
    except pa.ArrowInvalid:
        return numbers


def _read(file: Path, columns: dict[str, str], config: DataConfig) -> pa.Table:
    table = _together([read_piece(piece) for piece in pieces_of(file, config)], "its parts", str(file))
    kind = format_of(file, config)
    table = pa.table([validate.plain(column) for column in table.columns], table.column_names)
    lists = dict(config.lists)
    if kind in ("csv", "movielens", "recbole"):
        layout = delimited_layout(file, kind, config, read_head(file))
        lists = layout.lists | lists
        table = _numbers(table, keep={*columns.values(), *lists, *layout.vectors, MALFORMED}, vectors=layout.vectors)
    for name, separator in lists.items():
        if name in table.column_names and pa.types.is_string(table.schema.field(name).type):
            table = _replaced(table, name, _split(table.column(name), separator))
    return _movielens_item(table) if file.name == "u.item" else table


def _together(tables: list[pa.Table], setting: str, path: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
        raise DataError(f"{setting}: {path} is no single table: {error}; give the files that belong together") from None


def _numbers(table: pa.Table, keep: set[str], vectors: tuple[str, ...]) -> pa.Table:
    for name in table.column_names:
        if name not in keep:
            table = _replaced(table, name, typed(table.column(name)))
    for name in vectors:
        table = _replaced(table, name, pc.cast(_split(table.column(name), " "), pa.list_(pa.float32())))
    return table


def _split(column: pa.ChunkedArray, separator: str) -> pa.ChunkedArray:
    """Values between separators, trimmed, empty ones left out; null where nothing is left."""
    lists = pc.split_pattern(column, separator).combine_chunks()
    values = pc.utf8_trim_whitespace(pc.list_flatten(lists))
    parents = pc.list_parent_indices(lists).to_numpy()
    full = np.asarray(pc.fill_null(pc.not_equal(values, ""), False).to_numpy(zero_copy_only=False), bool)
    counts = np.bincount(parents[full], minlength=len(lists))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.chunked_array(
        [pa.ListArray.from_arrays(offsets, values.filter(pa.array(full)), mask=pa.array(counts == 0))]
    )


def _movielens_item(table: pa.Table) -> pa.Table:
    """The nineteen 0/1 columns of u.item as one list, and the year of the release date."""
    flags = np.column_stack(
        [pc.fill_null(pc.equal(pc.cast(table.column(name), pa.string()), "1"), False).to_numpy() for name in U_GENRES]
    )
    counts = flags.sum(1)
    names = pa.array(U_GENRES).take(pa.array(np.nonzero(flags)[1]))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    genres = pa.ListArray.from_arrays(offsets, names, mask=pa.array(counts == 0))
    dates = pc.cast(table.column("release_date"), pa.string())
    year = pc.struct_field(pc.extract_regex(dates, r"(?P<year>\d{4})$"), "year")
    table = table.drop_columns([*U_GENRES, "release_date", "video_release_date"])
    return table.append_column("genres", genres).append_column("year", pc.cast(year, pa.int64()))


def _renamed(table: pa.Table, source: str, target: str, file: Path) -> pa.Table:
    taken = [name for name in (*_DERIVED, target) if name in table.column_names and name != source]
    if taken:
        raise DataError(f"{file}: rename its columns {', '.join(taken)}: those names are needed for what prepare adds")
    ids = validate.clean_ids(table.column(source))
    return table.drop_columns([source]).add_column(0, target, ids)


def _unique_ids(table: pa.Table, role: Role, rejected: Rejected) -> np.ndarray:
    ids = table.column(_ID_COLUMN[role])
    bad = np.asarray(pc.is_valid(table.column(MALFORMED)).to_numpy(), bool)
    rejected.add(role, places(bad), validate.MALFORMED_LINE, table.column(MALFORMED).filter(pa.array(bad)))
    missing = np.asarray(pc.is_null(ids).to_numpy(), bool) & ~bad
    rejected.add(role, places(missing), _MISSING[role], pa.nulls(int(missing.sum()), pa.string()))
    # First occurrences: of the rows with an id, those whose code appears for the first time.
    at = places(~bad & ~missing)
    known = ids.take(pa.array(at))
    codes = pc.index_in(known, value_set=pc.unique(known)).to_numpy()
    first = np.zeros(len(bad), bool)
    first[at[np.unique(codes, return_index=True)[1]]] = True
    again = ~bad & ~missing & ~first
    rejected.add(role, places(again), _DUPLICATE[role], ids.filter(pa.array(again)))
    return first


def _replaced(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
