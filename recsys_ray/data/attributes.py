"""Derived columns of items and users: joined text, attribute tokens, standardised numbers, vectors of one length."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import validate
from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import DataError
from recsys_ray.core.schema import NumericField
from recsys_ray.data.rejected import Rejected, places
from recsys_ray.data.roles import MAX_CODES, is_flag, is_list, is_number

_BINS = 10


@dataclass(frozen=True)
class Tokens:
    """Attribute tokens.

    Attributes:
        column: (N,) lists of int32, rising within a row.
        vocabulary: "field=value" to token, from 1, the most frequent first.
    """

    column: pa.Array
    vocabulary: dict[str, int]


def joined_text(table: pa.Table, fields: list[str]) -> pa.ChunkedArray:
    """The text fields of each row, one a line; null where a row has none."""
    if not fields:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    # Arrow's null_handling="skip" loses the rows in which every part is null, so each part brings its line end.
    lines = [pc.binary_join_element_wise(_as_text(table.column(name)), "", "\n") for name in fields]
    joined = pc.utf8_rtrim_whitespace(pc.binary_join_element_wise(*(pc.fill_null(line, "") for line in lines), ""))
    return pc.if_else(pc.equal(joined, ""), None, joined)


def attribute_tokens(table: pa.Table, fields: list[str], max_tokens: int, min_count: int) -> Tokens:
    """Tokens of categorical fields: strings, codes, flags, and lists of them.

    Args:
        table: Items or users.
        fields: Its categorical fields.
        max_tokens: The most frequent values that stay.
        min_count: How many rows must share a value.
    """
    pairs = [_field_values(name, table.column(name)) for name in fields]
    rows = np.concatenate([np.zeros(0, np.int64), *(rows for rows, _ in pairs)])
    texts = pa.chunked_array([values for _, values in pairs], pa.string())
    names = pc.unique(texts)
    codes = np.asarray(pc.index_in(texts, value_set=names).to_numpy(), np.int64)
    once = np.unique(rows * (len(names) + 1) + codes)  # a value counts once a row
    rows, codes = once // (len(names) + 1), once % (len(names) + 1)
    token_of, vocabulary = _vocabulary(
        names.to_pylist(), np.bincount(codes, minlength=len(names)), max_tokens, min_count
    )
    tokens = token_of[codes]
    rows, tokens = rows[tokens > 0], tokens[tokens > 0]
    order = np.lexsort((tokens, rows))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=table.num_rows))])
    column = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(tokens[order], pa.int32()))
    return Tokens(column, vocabulary)


def standardised(table: pa.Table, fields: list[str]) -> tuple[pa.Array | None, dict[str, NumericField]]:
    """The column `_numeric` (None without fields) and how each field was standardised; constant fields are left out."""
    columns, stats = [], {}
    for name in fields:
        values = _floats(table.column(name))
        present = np.isfinite(values)
        spread = float(values[present].std()) if present.any() else 0.0
        if spread > 0 and np.isfinite(spread):
            mean = float(values[present].mean())
            stats[name] = NumericField(mean=mean, std=spread)
            columns.append(np.where(present, (values - mean) / spread, 0.0).astype(np.float32))
    if not columns:
        return None, {}
    flat = pa.array(np.column_stack(columns).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, len(columns)), stats


def fixed_vectors(name: str, column: pa.ChunkedArray, lines: pa.Array, rejected: Rejected) -> pa.Array:
    """A column of vectors of the length that most have; others become null and are rejected as "vectors".

    An empty list is a vector that is missing, no wrong one.

    Raises:
        DataError: When there are no vectors at all.
    """
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    present = lengths > 0
    dim = int(np.bincount(lengths[present]).argmax()) if present.any() else 0
    if dim == 0:
        raise DataError(f"column {name!r} is to hold vectors and has none; leave it out of data.vectors")
    fits = present & (lengths == dim)
    matrix = np.zeros((len(column), dim), np.float32)
    flat = pc.list_flatten(column.filter(pa.array(fits)))
    with np.errstate(over="ignore"):
        matrix[fits] = np.asarray(pc.cast(flat, pa.float64()).to_numpy(), np.float32).reshape(-1, dim)
    good = fits & np.isfinite(matrix).all(1)
    matrix[~good] = 0
    bad = places(present & ~good)
    what = [f"{name}: length {lengths[row]}, most have {dim}" for row in bad]
    rejected.add("vectors", lines.take(pa.array(bad)).to_numpy(), validate.BAD_VECTOR, pa.array(what, pa.string()))
    return pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), dim, mask=pa.array(~good))


def binned(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A number as one of ten ranges of about equal size, as text; codes of few values stay as they are."""
    if not is_number(column.type):
        return column
    few = pc.count_distinct(column.drop_null()).as_py() <= MAX_CODES
    if few and pa.types.is_integer(column.type):
        return column
    values = _floats(column)
    present = np.isfinite(values)
    if not present.any():
        return column
    edges = np.unique(np.quantile(values[present], np.linspace(0, 1, _BINS + 1)[1:]))
    labels = pa.array([f"up to {edge:g}" for edge in edges])
    place = np.searchsorted(edges, np.where(present, values, edges[0])).clip(0, len(edges) - 1)
    return pa.chunked_array([labels.take(pa.array(place, mask=~present))])


def _field_values(name: str, column: pa.ChunkedArray) -> tuple[IntArray, pa.Array]:
    """The (row, "field=value") pairs of one field."""
    whole = column.combine_chunks()
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    rows = np.arange(len(whole), dtype=np.int64)
    if is_list(whole.type):
        rows = np.asarray(pc.list_parent_indices(whole).to_numpy(zero_copy_only=False), np.int64)
        whole = pc.list_flatten(whole)
    elif is_flag(column):
        whole = pc.if_else(pc.equal(pc.cast(whole, pa.int64()), 1), pa.scalar("1"), pa.scalar(None, pa.string()))
    values = validate.clean_ids(pa.chunked_array([whole])).combine_chunks()
    known = np.asarray(pc.is_valid(values).to_numpy(zero_copy_only=False), bool)
    texts = pc.binary_join_element_wise(pa.scalar(name), values.filter(pa.array(known)), "=")
    return rows[known], texts


def _vocabulary(names: list[str], counts: IntArray, max_tokens: int, min_count: int) -> tuple[IntArray, dict[str, int]]:
    order = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    kept = [code for code in order[:max_tokens] if counts[code] >= min_count]
    token_of = np.zeros(len(names), np.int64)
    token_of[kept] = np.arange(1, len(kept) + 1)
    return token_of, {names[code]: token for token, code in enumerate(kept, start=1)}


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_list(column.type):
        column = pc.binary_join(pc.cast(column, pa.list_(pa.string())), ", ")
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64, NaN where missing. Dates count in days, times in seconds."""
    if pa.types.is_date(column.type):
        column = pc.cast(pc.cast(column, pa.date32()), pa.int32())
    elif pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy(), np.float64)
