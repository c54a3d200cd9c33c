"""The catalogue that a release answers with: ids, titles and fields by row, and what changed since it was published.

Rows below N are the release's own, in its order, for as long as it is served; items that came later have rows from N
on, which the item log numbers alike for all replicas.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa

from recsys_ray.core import schema
from recsys_ray.core.arrays import BoolArray, IntArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.index.live import places_of
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.filters import CompiledFilters, Filter, allowed_items


@dataclass(frozen=True, eq=False)
class Changed:
    """What is not as the release has it.

    Attributes:
        holds: (rows,) which rows are items now: not those deleted, nor numbers without an item.
        rows: (d,) rows that were put, rising.
        table: (d) the fields of those items.
        row_of: Of new items alone, also of those deleted again: id to row.
        id_of: Row to id, the other way round.
        allowed: What compiled filters of the release let through with the changes, made when first asked for.
    """

    holds: BoolArray
    rows: IntArray
    table: pa.Table
    row_of: Mapping[str, int]
    id_of: Mapping[int, str]
    allowed: "WeakKeyDictionary[Subset, Subset]" = field(default_factory=WeakKeyDictionary, repr=False)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items by row.

    Attributes:
        items: (N) the release's original fields.
        item_ids: Its ids and rows.
        fields: What the fields are used for.
        titles: (N,) for people, None where there is none.
        compiled: Filters of these items, compiled.
        changed: None for as long as nothing is.
    """

    items: pa.Table
    item_ids: IdMap
    fields: Fields
    titles: list[str | None]
    compiled: CompiledFilters
    changed: Changed | None = None

    @classmethod
    def of(cls, items: pa.Table, fields: Fields) -> "Catalogue":
        """As the release has it."""
        compiled = CompiledFilters(items)
        # Texts are seldom filtered by and long to lay out: a question that does so waits for it once.
        texts = {schema.ITEM_ID, fields.title, *fields.text} - set(fields.categorical)
        compiled.prepare(name for name in items.column_names if name not in texts)
        ids = IdMap(items.column(schema.ITEM_ID).to_pylist())
        return cls(items, ids, fields, _titles(items, fields), compiled)

    def __len__(self) -> int:
        return len(self.item_ids) if self.changed is None else int(self.changed.holds.sum())

    def row(self, item_id: str) -> int:
        """The row of an item, -1 when there is none of that id (any more)."""
        row = self.item_ids.row(item_id)
        if self.changed is None:
            return row
        row = row if row >= 0 else self.changed.row_of.get(item_id, -1)
        return row if row >= 0 and self.changed.holds[row] else -1

    def history_rows(self, item_ids: Sequence[str]) -> IntArray:
        """The rows of a history's items, -1 where unknown. What was published and deleted still tells of the user."""
        rows = self.item_ids.rows(item_ids)
        if self.changed is not None:
            for place in np.flatnonzero(rows < 0).tolist():
                rows[place] = self.row(item_ids[place])
        return rows

    def external(self, row: int) -> str:
        """The id of a row."""
        if row < len(self.item_ids) or self.changed is None:
            return self.item_ids.external(row)
        return self.changed.id_of[row]

    def title(self, row: int) -> str | None:
        """For people, None where there is none."""
        place = self._place(row)
        if place < 0 or self.changed is None:
            return self.titles[row]
        return _titles(self.changed.table.slice(place, 1), self.fields)[0]

    def shown(self, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
        """The named fields of some rows.

        Raises:
            ConfigError: When there is no such field.
        """
        for name in names:
            if name not in self.items.column_names:
                raise ConfigError("fields", name, ", ".join(self.items.column_names))
        if self.changed is None:
            return _rows_of(self.items, rows, names)
        places = places_of(self.changed.rows, rows)
        shown = np.empty(len(rows), object)
        shown[places < 0] = _rows_of(self.items, rows[places < 0], names)
        shown[places >= 0] = _rows_of(self.changed.table, places[places >= 0], names)
        return list(shown)

    def allowed(self, filters: Filter) -> Allowed:
        """What fits the filters, for one query.

        Raises:
            ConfigError: When a filter does not fit the catalogue.
        """
        subset = self.compiled.compile(filters)
        if self.changed is not None:
            subset = self._with_changes(self.changed, subset, filters)
        return Allowed.everywhere(subset, 1)

    def _with_changes(self, changed: Changed, published: Subset, filters: Filter) -> Subset:
        known = changed.allowed.get(published)
        if known is None:
            mask = np.zeros(len(changed.holds), np.bool_)
            mask[: len(published.mask)] = published.mask
            mask[changed.rows] = allowed_items(changed.table, filters)
            known = Subset(mask & changed.holds)
            changed.allowed[published] = known
        return known

    def holds(self, rows: IntArray) -> BoolArray:
        """(n,) which rows are items now."""
        if self.changed is None:
            return rows >= 0
        return _holding(rows, self.changed.holds)

    def only_present(self, lists: Mapping[str, Candidates]) -> dict[str, Candidates]:
        """Lists without what is no item: a replica may have read less of the item log than another one."""
        if self.changed is None:
            return dict(lists)
        return {name: _without(candidates, self.changed.holds) for name, candidates in lists.items()}

    def put(self, rows: IntArray, table: pa.Table, removed: Sequence[str]) -> "Catalogue":
        """The catalogue after a batch of changes.

        Args:
            rows: (n,) rows of what is new or has other fields now, rising.
            table: (n) those items, with the release's fields.
            removed: Ids of what is gone; unknown ones change nothing.
        """
        before = self.changed or self._unchanged()
        count = max(len(before.holds), int(rows[-1]) + 1 if len(rows) else 0)
        holds = np.zeros(count, np.bool_)
        holds[: len(before.holds)] = before.holds
        holds[rows] = True
        gone = [before.row_of.get(item_id, self.item_ids.row(item_id)) for item_id in removed]
        gone = [row for row in gone if row >= 0]
        holds[gone] = False
        kept = np.flatnonzero(~np.isin(before.rows, [*rows.tolist(), *gone]))
        merged = np.concatenate([before.rows[kept], rows])
        order = np.argsort(merged)
        everything = pa.concat_tables([before.table.take(pa.array(kept)), table]).take(pa.array(order))
        new = {
            item_id: row
            for item_id, row in zip(table.column(schema.ITEM_ID).to_pylist(), rows.tolist(), strict=True)
            if row >= len(self.item_ids)
        }
        row_of = {**before.row_of, **new}
        id_of = {row: item_id for item_id, row in row_of.items()}
        return replace(self, changed=Changed(holds, merged[order], everything.combine_chunks(), row_of, id_of))

    def _unchanged(self) -> Changed:
        none = np.zeros(0, np.int64)
        return Changed(np.ones(len(self.item_ids), np.bool_), none, self.items.slice(0, 0), {}, {})

    def _place(self, row: int) -> int:
        return -1 if self.changed is None else int(places_of(self.changed.rows, np.array([row]))[0])


def _titles(table: pa.Table, fields: Fields) -> list[str | None]:
    if fields.title is None:
        return [None] * table.num_rows
    return [None if title is None else str(title) for title in table.column(fields.title).to_pylist()]


def _rows_of(table: pa.Table, rows: IntArray, names: Sequence[str]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = table.select(list(names)).take(pa.array(rows)).to_pylist()
    return found


def _without(candidates: Candidates, holds: BoolArray) -> Candidates:
    """Each list without rows that do not hold, the others closed up."""
    rows = candidates.rows
    good = _holding(rows, holds)
    if (good == (rows >= 0)).all():
        return candidates
    order = np.argsort(~good, axis=1, kind="stable")
    kept = np.take_along_axis(good, order, 1)
    scores = np.take_along_axis(candidates.scores, order, 1)
    return Candidates(
        np.where(kept, np.take_along_axis(rows, order, 1), -1), np.where(kept, scores, -np.inf).astype(np.float32)
    )


def _holding(rows: IntArray, holds: BoolArray) -> BoolArray:
    inside = (rows >= 0) & (rows < len(holds))
    return inside & holds[np.where(inside, rows, 0)]
