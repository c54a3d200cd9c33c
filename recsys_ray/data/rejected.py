"""Bad rows: collected with a reason, counted, and too many of them stop the job."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core.arrays import IntArray
from recsys_ray.core.errors import DataError
from recsys_ray.core.schema import REJECTED
from recsys_ray.core.validate import NO_EVENTS, OUTSIDE_CORE, UNUSED_EXPOSURE

_EXAMPLES = 3
_VALUE_LENGTH = 200
# What was filtered on request or is merely unused says nothing about the quality of the data.
_NOT_BAD = (OUTSIDE_CORE, NO_EVENTS, UNUSED_EXPOSURE)


@dataclass
class Rejected:
    """Rejected rows of all sources, and how many rows each source had.

    Attributes:
        tables: Rows of the schema `core.schema.REJECTED`.
        rows_in: Rows that came, by source.
        rows_kept: Rows that were kept, by source.
    """

    tables: list[pa.Table] = field(default_factory=list)
    rows_in: dict[str, int] = field(default_factory=dict)
    rows_kept: dict[str, int] = field(default_factory=dict)

    def add(self, source: str, lines: IntArray, reason: str, values: pa.Array | pa.ChunkedArray | list[Any]) -> None:
        """Rows of one source with the same reason.

        Args:
            source: items, users, images, vectors, events, validation_events or test_events.
            lines: Their positions in the input, from 0.
            reason: One of the reasons in `core.validate`.
            values: What was wrong, as text.
        """
        if not len(lines):
            return
        texts = pc.utf8_slice_codeunits(
            pc.cast(pa.chunked_array([values]) if isinstance(values, list) else values, pa.string()), 0, _VALUE_LENGTH
        )
        count = len(lines)
        columns = [pa.repeat(source, count), pa.array(lines, pa.int64()), pa.repeat(reason, count), texts]
        self.tables.append(pa.table(columns, REJECTED))

    def settle(self, source: str, came: int, kept: int, max_fraction: float) -> None:
        """Close a source: the counts must add up, and bad rows above the threshold stop the job.

        Raises:
            DataError: With the counts by reason and some examples.
        """
        self.rows_in[source], self.rows_kept[source] = came, kept
        counts = self.counts().get(source, {})
        if came != kept + sum(counts.values()):
            raise AssertionError(f"{source}: {came} rows came, {kept} were kept and {counts} rejected")
        bad = {reason: count for reason, count in counts.items() if reason not in _NOT_BAD}
        if sum(bad.values()) > max_fraction * came:
            raise DataError(self._too_many(source, came, bad, max_fraction))

    def counts(self) -> dict[str, dict[str, int]]:
        """Source to reason to number of rows."""
        result: dict[str, dict[str, int]] = {}
        for table in self.tables:
            reasons = result.setdefault(table.column("source")[0].as_py(), {})
            reason = table.column("reason")[0].as_py()
            reasons[reason] = reasons.get(reason, 0) + table.num_rows
        return result

    def table(self) -> pa.Table:
        """All rejected rows, by source and line."""
        whole = pa.concat_tables([REJECTED.empty_table(), *self.tables])
        return whole.sort_by([("source", "ascending"), ("line", "ascending")])

    def _too_many(self, source: str, came: int, bad: dict[str, int], max_fraction: float) -> str:
        total = sum(bad.values())
        lines = [
            f"{source}: {total} of {came} rows are bad ({total / came:.1%}), more than "
            f"data.max_rejected_fraction={max_fraction} allows:"
        ]
        for reason, count in sorted(bad.items(), key=lambda entry: -entry[1]):
            lines.append(f"  {count} times {reason}, e.g. {self._examples(source, reason)}")
        lines.append("Mend the data or the column mapping (data.columns, data.timestamp_unit), or raise the threshold.")
        return "\n".join(lines)

    def _examples(self, source: str, reason: str) -> str:
        whole = pa.concat_tables(self.tables)
        mask = pc.and_(pc.equal(whole.column("source"), source), pc.equal(whole.column("reason"), reason))
        return "; ".join(
            f"row {row['line']}: {row['value']!r}" for row in whole.filter(mask).slice(0, _EXAMPLES).to_pylist()
        )


def places(mask: np.ndarray) -> IntArray:
    """The rows under a mask."""
    return np.flatnonzero(mask).astype(np.int64)
