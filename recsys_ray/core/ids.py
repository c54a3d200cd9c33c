"""External string ids and the dense rows behind them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import DataError


class IdMap:
    """A bijection between external string ids and rows 0 … N-1, in the order given.

    Raises:
        DataError: When an id comes twice.
    """

    def __init__(self, ids: Iterable[str]) -> None:
        self._ids: list[str] = list(ids)
        self._rows = {external: row for row, external in enumerate(self._ids)}
        if len(self._rows) != len(self._ids):
            raise DataError(f"ids must be unique: {len(self._ids) - len(self._rows)} of {len(self._ids)} come again")

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, external: str) -> bool:
        return external in self._rows

    def row(self, external: str) -> int:
        """The row of one id, -1 when it is unknown."""
        return self._rows.get(external, -1)

    def rows(self, externals: Iterable[str]) -> IntArray:
        """The rows of many ids, -1 where unknown."""
        return np.fromiter((self._rows.get(external, -1) for external in externals), np.int64)

    def rows_of_column(self, column: pa.ChunkedArray | pa.Array) -> IntArray:
        """The rows of an Arrow string column, -1 where unknown or null."""
        found = pc.index_in(column, value_set=pa.array(self._ids, pa.string()))
        return np.asarray(pc.fill_null(found, -1).to_numpy(zero_copy_only=False), np.int64)

    def external(self, row: int) -> str:
        """The id of one row."""
        return self._ids[row]

    def externals(self, rows: Sequence[int] | IntArray) -> list[str]:
        """The ids of many rows."""
        return [self._ids[int(row)] for row in rows]

    @property
    def ids(self) -> list[str]:
        """All ids, by row."""
        return list(self._ids)
