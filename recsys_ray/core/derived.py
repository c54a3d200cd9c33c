"""Derived columns of items that prepare and live upserts share: joined text, attribute values, tokens, numbers."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import validate
from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.schema import NumericField


def joined_text(table: pa.Table, fields: Sequence[str]) -> pa.ChunkedArray:
    """The text fields of each row, one a line; null where a row has none."""
    if not fields:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    # Arrow's null_handling="skip" loses the rows in which every part is null, so each part brings its line end.
    lines = [pc.binary_join_element_wise(_as_text(table.column(name)), "", "\n") for name in fields]
    joined = pc.utf8_rtrim_whitespace(pc.binary_join_element_wise(*(pc.fill_null(line, "") for line in lines), ""))
    return pc.if_else(pc.equal(joined, ""), None, joined)


def field_values(name: str, column: pa.ChunkedArray, flag: bool) -> tuple[IntArray, pa.Array]:
    """The (row, "field=value") pairs of one categorical field.

    Args:
        name: The field.
        column: Strings, codes, flags, or lists of them.
        flag: Whether it is true or false, or 0 and 1: then only what is true has a value.
    """
    whole = column.combine_chunks()
    whole = pa.concat_arrays(whole.chunks) if isinstance(whole, pa.ChunkedArray) else whole
    rows = np.arange(len(whole), dtype=np.int64)
    if is_list(whole.type):
        rows = np.asarray(pc.list_parent_indices(whole).to_numpy(zero_copy_only=False), np.int64)
        whole = pc.list_flatten(whole)
    elif flag:
        whole = pc.if_else(pc.equal(pc.cast(whole, pa.int64()), 1), pa.scalar("1"), pa.scalar(None, pa.string()))
    values = validate.clean_ids(pa.chunked_array([whole])).combine_chunks()
    known = np.asarray(pc.is_valid(values).to_numpy(zero_copy_only=False), bool)
    texts = pc.binary_join_element_wise(pa.scalar(name), values.filter(pa.array(known)), "=")
    return rows[known], texts


def known_tokens(table: pa.Table, fields: Sequence[str], vocabulary: Mapping[str, int]) -> pa.Array:
    """Attribute tokens of a vocabulary that was made before: lists of int32, rising within a row.

    A flag of 0 and 1 needs no telling from a code here: its vocabulary has no value 0.
    """
    found: list[set[int]] = [set() for _ in range(table.num_rows)]
    for name in fields:
        column = table.column(name)
        rows, texts = field_values(name, column, bool(pa.types.is_boolean(column.type)))
        for row, text in zip(rows.tolist(), texts.to_pylist(), strict=True):
            if text in vocabulary:
                found[row].add(vocabulary[text])
    return pa.array([sorted(tokens) for tokens in found], pa.list_(pa.int32()))


def standardised_by(table: pa.Table, fields: Mapping[str, NumericField]) -> pa.Array:
    """The column `_numeric` by means and spreads that were measured before."""
    columns = [standardise(floats(table.column(name)), field) for name, field in fields.items()]
    return pa.FixedSizeListArray.from_arrays(pa.array(np.column_stack(columns).ravel()), len(columns))


def standardise(values: np.ndarray, field: NumericField) -> FloatArray:
    """(N,) float32: (value - mean) / std, 0 where a value is missing."""
    return np.where(np.isfinite(values), (values - field.mean) / field.std, 0.0).astype(np.float32)


def floats(column: pa.ChunkedArray) -> np.ndarray:
    """float64, NaN where missing. Dates count in days, times in seconds."""
    if pa.types.is_date(column.type):
        column = pc.cast(pc.cast(column, pa.date32()), pa.int32())
    elif pa.types.is_temporal(column.type):
        column = pc.cast(pc.cast(column, pa.timestamp("s"), safe=False), pa.int64())
    return np.asarray(pc.fill_null(pc.cast(column, pa.float64(), safe=False), np.nan).to_numpy(), np.float64)


def is_list(kind: pa.DataType) -> bool:
    """Whether values are lists, of fixed size or not."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if is_list(column.type):
        column = pc.binary_join(pc.cast(column, pa.list_(pa.string())), ", ")
    trimmed = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    return pc.if_else(pc.equal(trimmed, ""), None, trimmed)
