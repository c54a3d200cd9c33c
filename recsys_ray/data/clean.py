"""Events: row-wise parsing (the same function in one process and under Ray), then the steps that need all rows."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import schema, validate
from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.events import Events
from recsys_ray.data.readers import MALFORMED
from recsys_ray.data.rejected import Rejected, places
from recsys_ray.data.sources import DataConfig
from recsys_ray.data.split import TEST, TRAIN, VALIDATION, PartArray

DEFAULT_KIND = "interaction"
PART_NAMES = {TRAIN: "events", VALIDATION: "validation_events", TEST: "test_events"}
PARSED = pa.schema([*schema.EVENTS, ("reason", pa.string()), ("value", pa.string())])


@dataclass(frozen=True)
class CleanEvents:
    """Events that passed, in CSR order.

    Attributes:
        events: The interactions.
        kinds: (E,) the kind of each, aligned with `events`.
        exposures: What users were shown, see `DataConfig.exposures`; none of it is among `events`.
        exposure_kinds: The kind of each, aligned with `exposures`.
        parts: (E,) the input each came from: TRAIN, VALIDATION or TEST.
        user_ids: User ids by row, in order of first appearance.
        item_ids: Item ids by row: those of the catalogue in its order, or in order of first appearance.
        timed: Whether the input has timestamps; without, they are positions in the input.
        catalogue_rows: (N,) the row in the given catalogue of each item; without a catalogue it means nothing.
    """

    events: Events
    kinds: pa.Array
    exposures: Events
    exposure_kinds: pa.Array
    parts: PartArray
    user_ids: list[str]
    item_ids: list[str]
    timed: bool
    catalogue_rows: IntArray


def parse_events(table: pa.Table, columns: dict[str, str], unit: validate.TimeUnit) -> pa.Table:
    """One row out for each row in: canonical columns, and the reason why a row is bad.

    Args:
        table: What `readers.read_piece` returned.
        columns: Canonical name to source column.
        unit: The unit of numeric timestamps.

    Returns:
        A table of the schema `PARSED`; the timestamp is null where there is no such column.
    """
    count = table.num_rows
    raw = {part: _source_column(table, columns.get(part)) for part in schema.EVENTS.names}
    users, items = validate.clean_ids(raw[schema.USER_ID]), validate.clean_ids(raw[schema.ITEM_ID])
    found = _Findings(count)
    found.add({validate.MALFORMED_LINE: _mask(pc.is_valid(table.column(MALFORMED)))}, table.column(MALFORMED))
    found.add({validate.MISSING_USER: _mask(pc.is_null(users))}, items)
    found.add({validate.MISSING_ITEM: _mask(pc.is_null(items))}, users)
    times = pa.nulls(count, pa.int64())
    if schema.TIMESTAMP in columns:
        values, problems = validate.parse_timestamps(raw[schema.TIMESTAMP], unit)
        found.add(problems, raw[schema.TIMESTAMP])
        times = pa.array(values)
    weights = np.ones(count, np.float32)
    if schema.WEIGHT in columns:
        weights, problems = validate.parse_weights(raw[schema.WEIGHT])
        found.add(problems, raw[schema.WEIGHT])
    kinds = pc.fill_null(validate.clean_ids(raw[schema.KIND]), DEFAULT_KIND)
    return pa.table([users, items, times, kinds, pa.array(weights), found.reasons(), found.texts()], PARSED)


def clean_events(
    parts: dict[int, pa.Table], catalogue: list[str] | None, config: DataConfig, rejected: Rejected
) -> CleanEvents:
    """Drop bad rows, unknown items and duplicates, cut to the core, and sort.

    Args:
        parts: TRAIN, VALIDATION, TEST to parsed events; protocols other than `given` have TRAIN only.
        catalogue: The known item ids; None takes those of the events.
        config: Which kinds are exposures, core sizes and the threshold.
        rejected: Takes the rejected rows.

    Raises:
        ConfigError: When no row is of a kind that is named an exposure.
        DataError: When too many rows are bad, or only some parts have timestamps.
    """
    table = pa.concat_tables(parts.values())
    rows = _Rows.of(table, parts, catalogue)
    shown = _exposures(table, config.exposures)
    alive = _reject_bad(table, rows, rejected)
    checks: dict[str, Callable[[BoolArray], BoolArray]] = {
        validate.UNKNOWN_ITEM: rows.unknown,
        validate.DUPLICATE_EVENT: rows.repeats,
        validate.OUTSIDE_CORE: partial(
            rows.outside_core,
            shown=shown,
            min_user_events=config.min_user_events,
            min_item_events=config.min_item_events,
        ),
        validate.UNUSED_EXPOSURE: partial(rows.unused, shown=shown),
    }
    for reason, check in checks.items():
        bad = alive & check(alive)
        rows.reject(rejected, bad, reason, table.column(schema.ITEM_ID))
        alive &= ~bad
    for part, name in PART_NAMES.items():
        if part in parts:
            kept = int(alive[rows.part == part].sum())
            rejected.settle(name, parts[part].num_rows, kept, config.max_rejected_fraction)
    only_with_events = catalogue is None or config.min_item_events > 0
    return _finish(rows, table, (alive & ~shown, alive & shown), only_with_events=only_with_events)


@dataclass(frozen=True)
class _Rows:
    """All n rows of all parts as numbers.

    Attributes:
        users: Codes into `user_ids`, -1 where missing.
        items: Codes into `item_ids`, -1 where missing or unknown.
        times: Microseconds, or positions where there is no time.
        kinds: Codes.
        part: TRAIN, VALIDATION or TEST.
        line: Position in the part's input.
        user_ids: In order of first appearance.
        item_ids: The catalogue, or in order of first appearance.
    """

    users: IntArray
    items: IntArray
    times: IntArray
    kinds: IntArray
    part: PartArray
    line: IntArray
    user_ids: pa.Array
    item_ids: pa.Array

    @classmethod
    def of(cls, table: pa.Table, parts: dict[int, pa.Table], catalogue: list[str] | None) -> "_Rows":
        users, user_ids = _codes(table.column(schema.USER_ID))
        kinds, _ = _codes(table.column(schema.KIND))
        if catalogue is None:
            items, item_ids = _codes(table.column(schema.ITEM_ID))
        else:
            item_ids = pa.array(catalogue, pa.string())
            items = _numbers(pc.fill_null(pc.index_in(table.column(schema.ITEM_ID), value_set=item_ids), -1))
        lengths = [part.num_rows for part in parts.values()]
        return cls(
            users=users,
            items=items,
            times=_times(parts),
            kinds=kinds,
            part=np.repeat(np.array(list(parts), np.int8), lengths),
            line=np.concatenate([np.arange(length, dtype=np.int64) for length in lengths]),
            user_ids=user_ids,
            item_ids=item_ids,
        )

    def unknown(self, alive: BoolArray) -> BoolArray:
        """Rows whose item is not in the catalogue."""
        return alive & (self.items < 0)

    def repeats(self, alive: BoolArray) -> BoolArray:
        """Rows equal to an earlier one in user, item, time and kind."""
        at = places(alive)
        columns = [column[at] for column in (self.kinds, self.items, self.times, self.users)]
        order = np.lexsort(columns)
        same = np.logical_and.reduce([column[order][1:] == column[order][:-1] for column in columns])
        result = np.zeros(len(alive), bool)
        result[at[order[1:][same]]] = True
        return result

    def outside_core(self, alive: BoolArray, shown: BoolArray, min_user_events: int, min_item_events: int) -> BoolArray:
        """Events whose user or item has too few events left, until nothing changes; exposures are not counted."""
        at = places(alive & ~shown)
        while min_user_events > 1 or min_item_events > 1:
            users, items = self.users[at], self.items[at]
            enough_of_user = np.bincount(users, minlength=1)[users] >= min_user_events
            enough_of_item = np.bincount(items, minlength=1)[items] >= min_item_events
            kept = at[enough_of_user & enough_of_item]
            if len(kept) == len(at):
                break
            at = kept
        outside = alive & ~shown
        outside[at] = False
        return outside

    def unused(self, alive: BoolArray, shown: BoolArray) -> BoolArray:
        """Exposures of users or items without an event, and those that came with what is held out."""
        chosen = alive & ~shown
        of_users, of_items = np.zeros(len(self.user_ids), bool), np.zeros(len(self.item_ids), bool)
        of_users[self.users[chosen]] = True
        of_items[self.items[chosen]] = True
        at = places(alive & shown)
        of_use = of_users[self.users[at]] & of_items[self.items[at]] & (self.part[at] == TRAIN)
        result = np.zeros(len(alive), bool)
        result[at[~of_use]] = True
        return result

    def reject(self, rejected: Rejected, mask: BoolArray, reason: str, values: pa.ChunkedArray) -> None:
        for part, name in PART_NAMES.items():
            at = places(mask & (self.part == part))
            rejected.add(name, self.line[at], reason, values.take(pa.array(at)))


def _exposures(table: pa.Table, names: tuple[str, ...]) -> BoolArray:
    """The mask of the rows that say only that something was shown."""
    kinds = table.column(schema.KIND)
    there = set(pc.unique(kinds).to_pylist())
    for name in names:
        if name not in there:
            raise ConfigError("data.exposures", name, ", ".join(sorted(there)), "No event is of this kind.")
    return _mask(pc.is_in(kinds, value_set=pa.array(names, pa.string())))


def _finish(rows: _Rows, table: pa.Table, kept: tuple[BoolArray, BoolArray], only_with_events: bool) -> CleanEvents:
    """The end of it, from the masks of the events and of the exposures that are left."""
    at, shown_at = (_in_order(rows, mask) for mask in kept)
    user_codes, users = np.unique(rows.users[at], return_inverse=True)
    item_codes, items = np.arange(len(rows.item_ids)), rows.items[at]
    if only_with_events:
        item_codes, items = np.unique(items, return_inverse=True)
    weights: FloatArray = table.column(schema.WEIGHT).to_numpy()
    sizes = len(user_codes), len(item_codes)
    shown_users, shown_items = (
        np.searchsorted(codes, column[shown_at])
        for codes, column in ((user_codes, rows.users), (item_codes, rows.items))
    )
    return CleanEvents(
        events=Events.from_columns(users, items, rows.times[at], weights[at], *sizes),
        kinds=table.column(schema.KIND).take(pa.array(at)).combine_chunks(),
        exposures=Events.from_columns(shown_users, shown_items, rows.times[shown_at], weights[shown_at], *sizes),
        exposure_kinds=table.column(schema.KIND).take(pa.array(shown_at)).combine_chunks(),
        parts=rows.part[at],
        user_ids=rows.user_ids.take(pa.array(user_codes)).to_pylist(),
        item_ids=rows.item_ids.take(pa.array(item_codes)).to_pylist(),
        timed=bool(table.column(schema.TIMESTAMP).null_count < table.num_rows),
        catalogue_rows=item_codes,
    )


def _in_order(rows: _Rows, mask: BoolArray) -> IntArray:
    """The rows under a mask by user and time; equal times keep the order of the input."""
    at = places(mask)
    return at[np.lexsort((rows.times[at], rows.users[at]))]


def _reject_bad(table: pa.Table, rows: _Rows, rejected: Rejected) -> BoolArray:
    """Hand over the rows that `parse_events` found bad; returns the mask of the others."""
    reasons = table.column("reason")
    for reason in pc.unique(reasons.drop_null()).to_pylist():
        rows.reject(rejected, _mask(pc.fill_null(pc.equal(reasons, reason), False)), reason, table.column("value"))
    return _mask(pc.is_null(reasons))


def _times(parts: dict[int, pa.Table]) -> IntArray:
    """Timestamps, or positions in the inputs end to end where there are none."""
    columns = {part: table.column(schema.TIMESTAMP) for part, table in parts.items() if table.num_rows}
    without = [PART_NAMES[part] for part, column in columns.items() if column.null_count == len(column)]
    if without and len(without) < len(columns):
        raise DataError(f"{', '.join(without)}: no timestamp column, but the other parts have one; give all or none")
    if without:
        return np.arange(sum(map(len, columns.values())), dtype=np.int64)
    return np.concatenate([np.zeros(0, np.int64), *(column.to_numpy() for column in columns.values())])


class _Findings:
    """The first problem of each row, and the text that shows it."""

    def __init__(self, count: int) -> None:
        self._reasons = np.full(count, None, object)
        self._texts = np.full(count, None, object)
        self._fine = np.ones(count, bool)

    def add(self, problems: validate.Problems, shown: pa.ChunkedArray) -> None:
        for reason, mask in problems.items():
            at = places(mask & self._fine)
            self._fine[at] = False
            self._reasons[at] = reason
            self._texts[at] = [None if value is None else str(value) for value in shown.take(pa.array(at)).to_pylist()]

    def reasons(self) -> pa.Array:
        return pa.array(self._reasons, pa.string())

    def texts(self) -> pa.Array:
        return pa.array(self._texts, pa.string())


def _source_column(table: pa.Table, name: str | None) -> pa.ChunkedArray:
    if name is None or name not in table.column_names:
        return pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return table.column(name)


def _codes(column: pa.ChunkedArray) -> tuple[IntArray, pa.Array]:
    """Codes by first appearance, -1 for null, and the values behind them."""
    values = pc.unique(column.drop_null())
    return _numbers(pc.fill_null(pc.index_in(column, value_set=values), -1)), values


def _numbers(column: pa.ChunkedArray) -> IntArray:
    return np.asarray(column.to_numpy(), np.int64)


def _mask(column: pa.ChunkedArray) -> BoolArray:
    return np.asarray(column.to_numpy(), bool)
