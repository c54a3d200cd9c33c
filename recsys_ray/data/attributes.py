"""Derived columns of items and users: attribute tokens, standardised numbers, vectors of one length."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import validate
from recsys_ray.core.arrays import IntArray
from recsys_ray.core.derived import field_values, floats, standardise
from recsys_ray.core.errors import DataError
from recsys_ray.core.schema import NumericField
from recsys_ray.data.rejected import Rejected, places
from recsys_ray.data.roles import MAX_CODES, is_flag, is_number

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


def attribute_tokens(table: pa.Table, fields: list[str], max_tokens: int, min_count: int) -> Tokens:
    """Tokens of categorical fields: strings, codes, flags, and lists of them.

    Args:
        table: Items or users.
        fields: Its categorical fields.
        max_tokens: The most frequent values that stay.
        min_count: How many rows must share a value.
    """
    pairs = [field_values(name, table.column(name), is_flag(table.column(name))) for name in fields]
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
        values = floats(table.column(name))
        present = np.isfinite(values)
        spread = float(values[present].std()) if present.any() else 0.0
        if spread > 0 and np.isfinite(spread):
            stats[name] = NumericField(mean=float(values[present].mean()), std=spread)
            columns.append(standardise(values, stats[name]))
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
    values = floats(column)
    present = np.isfinite(values)
    if not present.any():
        return column
    edges = np.unique(np.quantile(values[present], np.linspace(0, 1, _BINS + 1)[1:]))
    labels = pa.array([f"up to {edge:g}" for edge in edges])
    place = np.searchsorted(edges, np.where(present, values, edges[0])).clip(0, len(edges) - 1)
    return pa.chunked_array([labels.take(pa.array(place, mask=~present))])


def _vocabulary(names: list[str], counts: IntArray, max_tokens: int, min_count: int) -> tuple[IntArray, dict[str, int]]:
    order = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    kept = [code for code in order[:max_tokens] if counts[code] >= min_count]
    token_of = np.zeros(len(names), np.int64)
    token_of[kept] = np.arange(1, len(kept) + 1)
    return token_of, {names[code]: token for token, code in enumerate(kept, start=1)}
