"""Prepare: raw files to the dataset artifact's directory, in the order of the functions below."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_ray.core import schema, validate
from recsys_ray.core.derived import joined_text
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.events import Events
from recsys_ray.core.progress import say
from recsys_ray.core.schema import Fields
from recsys_ray.data.attributes import attribute_tokens, binned, fixed_vectors, standardised
from recsys_ray.data.catalogue import Catalogue, read_catalogue
from recsys_ray.data.clean import CleanEvents, clean_events
from recsys_ray.data.event_log import read_events
from recsys_ray.data.pictures import (
    PICTURES_FOLDER,
    check_catalogue_pictures,
    find_pictures,
    holds_bytes,
    picture_folder,
    pictures_by_stem,
)
from recsys_ray.data.rejected import Rejected, places
from recsys_ray.data.report import Prepared, write_report
from recsys_ray.data.roles import Roles, auto_role, decide_roles
from recsys_ray.data.sources import DataConfig, find_files
from recsys_ray.data.split import (
    TEST,
    TRAIN,
    VALIDATION,
    PartArray,
    SplitConfig,
    future_share,
    split_events,
)

FOLDS_FILE = "folds.parquet"


def prepare(data: DataConfig, split: SplitConfig, directory: Path) -> dict[str, Any]:
    """Fill the directory of a dataset artifact.

    Args:
        data: The raw data.
        split: The protocol.
        directory: Existing and empty.

    Returns:
        The summary: users, items, events, rows by source (in, kept, rejected by reason), folds, warnings …

    Raises:
        ConfigError: When a path or a setting does not fit the data.
        DataError: When the data cannot be used: too many bad rows, no events left, a column that is not there.
    """
    rejected = Rejected()
    catalogue = _read_items(data, rejected)
    clean = clean_events(_read_event_parts(data, split), _ids(catalogue), data, rejected)
    if not len(clean.events):
        raise DataError(f"no events are left after cleaning; rejected: {rejected.counts()}")
    items = _kept_items(catalogue, clean, data, rejected)
    item_table, fields, roles = _derive_items(items, data, directory, rejected)
    user_table, user_tokens = _derive_users(clean, data, rejected)
    fields = fields.model_copy(update={"user_tokens": user_tokens})
    _require_time(clean, split)
    folds = split_events(clean.events, split, clean.parts)
    _write(directory, item_table, user_table, fields, clean, folds, rejected)
    prepared = Prepared(item_table, fields, roles, clean, folds, rejected, split, _warnings(clean, split, folds))
    folder = picture_folder(data)
    return {**write_report(prepared, directory), PICTURES_FOLDER: None if folder is None else str(folder)}


def input_files(data: DataConfig, split: SplitConfig | None = None) -> list[Path]:
    """The files whose contents make the dataset: tables, event logs, and the pictures that the catalogue names.

    Raises:
        ConfigError: When nothing is at one of the paths.
    """
    files: list[Path] = []
    if data.items is not None:
        files += find_files("data.items", data.items, "items")
    files += find_files("data.events", _events_path(data), "events")
    if data.users is not None:
        files += find_files("data.users", data.users, "users")
    if split is not None and split.validation_events and split.test_events:
        files += find_files("split.validation_events", split.validation_events, "events")
        files += find_files("split.test_events", split.test_events, "events")
    return files + _picture_files(data)


def _picture_files(data: DataConfig) -> list[Path]:
    catalogue = _read_items(data.model_copy(update={"max_rejected_fraction": 1.0}), Rejected())
    if catalogue is None:
        return list(pictures_by_stem(data).values())
    found, _ = find_pictures(catalogue, data)
    return [source for source in found.sources if isinstance(source, Path) and source.is_file()]


def _read_items(data: DataConfig, rejected: Rejected) -> Catalogue | None:
    if data.items is None:
        return None
    catalogue = read_catalogue("data.items", data.items, "items", data, rejected)
    rejected.settle("items", catalogue.rows_in, catalogue.table.num_rows, data.max_rejected_fraction)
    return catalogue


def _read_event_parts(data: DataConfig, split: SplitConfig) -> dict[int, pa.Table]:
    parts = {TRAIN: read_events("data.events", _events_path(data), data)}
    if split.validation_events and split.test_events:
        parts[VALIDATION] = read_events("split.validation_events", split.validation_events, data)
        parts[TEST] = read_events("split.test_events", split.test_events, data)
    return parts


def _events_path(data: DataConfig) -> str:
    if data.events is None:
        raise ConfigError("data.events", None, "the path of an event log: a file, a folder or a glob")
    return data.events


def _ids(catalogue: Catalogue | None) -> list[str] | None:
    return None if catalogue is None else catalogue.table.column(schema.ITEM_ID).to_pylist()


def _kept_items(catalogue: Catalogue | None, clean: CleanEvents, data: DataConfig, rejected: Rejected) -> Catalogue:
    """The catalogue cut to the items that stay; without a catalogue, the items of the events."""
    if catalogue is None:
        table = pa.table({schema.ITEM_ID: pa.array(clean.item_ids, pa.string())})
        return Catalogue(table, pa.array(np.arange(table.num_rows)), table.num_rows)
    dropped = np.ones(catalogue.table.num_rows, bool)
    dropped[clean.catalogue_rows] = False
    ids = catalogue.table.column(schema.ITEM_ID).filter(pa.array(dropped))
    rejected.add("items", catalogue.lines.to_numpy()[dropped], validate.OUTSIDE_CORE, ids)
    rejected.settle("items", catalogue.rows_in, len(clean.item_ids), data.max_rejected_fraction)
    rows = pa.array(clean.catalogue_rows)
    return Catalogue(
        catalogue.table.take(rows), catalogue.lines.take(rows), catalogue.rows_in, catalogue.title, catalogue.image
    )


def _derive_items(
    items: Catalogue, data: DataConfig, directory: Path, rejected: Rejected
) -> tuple[pa.Table, Fields, Roles]:
    table = items.table
    left_out = {schema.ITEM_ID} | ({items.image} if items.image else set())
    roles = decide_roles(table, data, items.title, left_out)
    pictures = check_catalogue_pictures(items, data, directory, rejected)
    tokens = attribute_tokens(table, roles.categorical, data.max_tokens, data.min_token_count)
    numeric, stats = standardised(table, roles.numeric)
    vectors = {}
    for name in roles.vectors:
        column = fixed_vectors(name, table.column(name), items.lines, rejected)
        table = table.set_column(table.column_names.index(name), name, column)
        vectors[name] = column.type.list_size
    _settle_vectors(items, vectors, rejected, data)
    table = table.append_column(schema.TEXT, joined_text(table, roles.text))
    table = table.append_column(schema.IMAGE, pictures.paths).append_column(schema.IMAGE_HASH, pictures.hashes)
    table = table.append_column(schema.TOKENS, tokens.column)
    if numeric is not None:
        table = table.append_column(schema.NUMERIC, numeric)
    if items.image is not None and holds_bytes(items.table.schema.field(items.image).type):
        table = table.drop_columns([items.image])
    fields = Fields(
        title=items.title,
        text=tuple(roles.text),
        categorical=tuple(roles.categorical),
        numeric=stats,
        vectors=vectors,
        tokens=tokens.vocabulary,
    )
    return table, fields, roles


def _settle_vectors(items: Catalogue, vectors: dict[str, int], rejected: Rejected, data: DataConfig) -> None:
    if vectors:
        came = sum(len(column) - column.null_count for column in map(items.table.column, vectors))
        bad = sum(rejected.counts().get("vectors", {}).values())
        rejected.settle("vectors", came, came - bad, data.max_rejected_fraction)


def _derive_users(clean: CleanEvents, data: DataConfig, rejected: Rejected) -> tuple[pa.Table, dict[str, int]]:
    """The users of the events, with the attributes of those that the user table knows."""
    ids = pa.array(clean.user_ids, pa.string())
    table = pa.table({schema.USER_ID: ids})
    fields: list[str] = []
    if data.users is not None:
        known = read_catalogue("data.users", data.users, "users", data, rejected)
        listed = known.table.column(schema.USER_ID)
        unused = places(np.asarray(pc.invert(pc.is_in(listed, value_set=ids)).to_numpy(), bool))
        rejected.add("users", known.lines.to_numpy()[unused], validate.NO_EVENTS, listed.take(pa.array(unused)))
        rejected.settle("users", known.rows_in, len(listed) - len(unused), data.max_rejected_fraction)
        table = known.table.take(pc.index_in(ids, value_set=listed.combine_chunks())).set_column(0, schema.USER_ID, ids)
        fields = _user_fields(table, data)
    binned_table = pa.table({name: binned(table.column(name)) for name in (schema.USER_ID, *fields)})
    tokens = attribute_tokens(binned_table, fields, data.max_tokens, data.min_token_count)
    return table.append_column(schema.TOKENS, tokens.column), tokens.vocabulary


def _user_fields(table: pa.Table, data: DataConfig) -> list[str]:
    names = [name for name in table.column_names if name != schema.USER_ID]
    if data.user_fields == "auto":
        return [name for name in names if auto_role(table.column(name)) in ("categorical", "numeric")]
    for name in data.user_fields:
        if name not in names:
            raise ConfigError("data.user_fields", name, ", ".join(names), "The user table has no such column.")
    return list(data.user_fields)


def _require_time(clean: CleanEvents, split: SplitConfig) -> None:
    if split.protocol == "global_time" and not clean.timed:
        raise DataError("split.protocol=global_time needs a timestamp column: set data.columns.timestamp")


def _warnings(clean: CleanEvents, split: SplitConfig, folds: list[PartArray]) -> list[str]:
    warnings = []
    real = clean.events.has_real_time
    if split.protocol == "leave_one_out" and real:
        share = future_share(clean.events, folds[0])
        warnings.append(
            f"leave_one_out leaks the future: on average {share:.0%} of the training events are later than the event "
            "to be predicted. Fine for comparing with published numbers; use split.protocol=global_time to estimate "
            "what production will see."
        )
    if split.protocol == "global_time" and not real:
        warnings.append(
            "global_time on timestamps that look like positions (most lie before 1980): is data.timestamp_unit right?"
        )
    for warning in warnings:
        say(f"Warning: {warning}")
    return warnings


def _write(
    directory: Path,
    items: pa.Table,
    users: pa.Table,
    fields: Fields,
    clean: CleanEvents,
    folds: list[PartArray],
    rejected: Rejected,
) -> None:
    events = _event_table(clean, clean.events, clean.kinds)
    exposures = _event_table(clean, clean.exposures, clean.exposure_kinds)
    pq.write_table(items, directory / schema.ITEMS_FILE)
    pq.write_table(users, directory / schema.USERS_FILE)
    pq.write_table(events, directory / schema.EVENTS_FILE)
    pq.write_table(exposures, directory / schema.EXPOSURES_FILE)
    pq.write_table(pa.table({f"fold_{n}": part for n, part in enumerate(folds)}), directory / FOLDS_FILE)
    pq.write_table(rejected.table(), directory / schema.REJECTED_FILE)
    fields.save(directory / schema.FIELDS_FILE)


def _event_table(clean: CleanEvents, events: Events, kinds: pa.Array) -> pa.Table:
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(events.users), pa.array(clean.user_ids)).cast(pa.string()),
        pa.DictionaryArray.from_arrays(pa.array(events.items), pa.array(clean.item_ids)).cast(pa.string()),
        pa.array(events.timestamps),
        kinds,
        pa.array(events.weights),
    ]
    return pa.table(columns, schema.EVENTS)
