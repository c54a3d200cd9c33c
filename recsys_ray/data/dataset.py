"""The dataset artifact as later stages see it: catalogue, users, events, and folds to train and evaluate on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_ray.core import schema
from recsys_ray.core.arrays import BoolArray, IntArray, Ragged
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.events import Events
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.data.pictures import INSIDE, PICTURES_FOLDER
from recsys_ray.data.prepare import FOLDS_FILE, input_files, prepare
from recsys_ray.data.split import (
    COLD_TRAIN,
    COLD_VALIDATION,
    TEST,
    TRAIN,
    VALIDATION,
    VALIDATION_REPEAT,
    PartArray,
)

__all__ = ["Dataset", "Fold", "Targets", "fold_of", "input_files", "load_dataset", "load_kinds", "prepare"]


@dataclass(frozen=True)
class Targets:
    """Q evaluation queries of one fold and part.

    Attributes:
        users: (Q,) user rows.
        history: (Q) item rows that the query may use, oldest first; for test, train and validation events.
        exclude: (Q) item rows masked from the ranking: all items of the history, and the cold ones that the user met
            at the time (`split.cold_items`). A target among them becomes a miss, as published protocols have it.
        items: (Q) target item rows, at least one each.
        new_users: (Q,) users without an event in the fold's train.
    """

    users: IntArray
    history: Ragged
    exclude: Ragged
    items: Ragged
    new_users: BoolArray

    def __len__(self) -> int:
        return len(self.users)


@dataclass(frozen=True)
class Fold:
    """One split of the events. Everything fitted for `validation` sees `train` only."""

    train: Events
    train_validation: Events
    validation: Targets
    test: Targets


@dataclass(frozen=True)
class Dataset:
    """All of a dataset artifact.

    Attributes:
        items: One row an item, in row order: item_id, the original fields, the derived columns of `core.schema`.
            `_numeric` is there only when there are numeric fields.
        users: One row a user, in row order: user_id, `_tokens`, the original fields.
        item_ids: Item ids and rows.
        user_ids: User ids and rows.
        fields: What each catalogue field is used for.
        events: All events.
        exposures: What users were shown, in the same rows; none of it is among `events` or in a fold.
        folds: One for leave_one_out and given, `split.cuts` for global_time.
    """

    items: pa.Table
    users: pa.Table
    item_ids: IdMap
    user_ids: IdMap
    fields: Fields
    events: Events
    exposures: Events
    folds: tuple[Fold, ...]

    @property
    def user_tokens(self) -> IntArray:
        """(U, T) attribute tokens of the users, padded on the right with 0; T is 0 when users have no attributes."""
        tokens = _ragged(self.users.column(schema.TOKENS))
        padded = np.zeros((len(tokens), int(tokens.lengths.max(initial=0))), np.int64)
        column = np.arange(len(tokens.values)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
        padded[tokens.row_of_value, column] = tokens.values
        return padded


def load_dataset(artifact: Artifact, pictures: Path | None = None) -> Dataset:
    """Read a dataset artifact into memory.

    Args:
        artifact: What `prepare` wrote.
        pictures: The folder that picture paths are relative to today; by default where it was then.

    Raises:
        ArtifactError: When its files do not fit together.
    """
    folder = str(pictures or artifact.summary.get(PICTURES_FOLDER) or "")
    items = _with_absolute_pictures(pq.read_table(artifact.file(schema.ITEMS_FILE)), artifact.path, folder)
    users = pq.read_table(artifact.file(schema.USERS_FILE))
    item_ids = IdMap(items.column(schema.ITEM_ID).to_pylist())
    user_ids = IdMap(users.column(schema.USER_ID).to_pylist())
    events = _read_events(artifact.file(schema.EVENTS_FILE), user_ids, item_ids)
    parts = pq.read_table(artifact.file(FOLDS_FILE))
    if parts.num_rows != len(events):
        raise ArtifactError(f"{artifact.path}: {parts.num_rows} fold entries for {len(events)} events: prepare again")
    return Dataset(
        items=items,
        users=users,
        item_ids=item_ids,
        user_ids=user_ids,
        fields=Fields.load(artifact.file(schema.FIELDS_FILE)),
        events=events,
        exposures=_read_events(artifact.file(schema.EXPOSURES_FILE), user_ids, item_ids),
        folds=tuple(fold_of(events, column.to_numpy()) for column in parts.columns),
    )


def load_kinds(artifact: Artifact) -> pa.DictionaryArray:
    """(E,) the kind of each event of a dataset artifact, in the order of its `events`."""
    column = pq.read_table(artifact.file(schema.EVENTS_FILE), columns=[schema.KIND], read_dictionary=[schema.KIND])
    return column.column(schema.KIND).unify_dictionaries().combine_chunks()


def fold_of(events: Events, part: PartArray) -> Fold:
    """The fold in which event e is `part[e]`, see `data.split`."""

    def of(*parts: int) -> Events:
        return events.where(np.isin(part, parts))

    train, train_validation = of(TRAIN), of(TRAIN, VALIDATION, VALIDATION_REPEAT)
    met, met_later = of(TRAIN, COLD_TRAIN), of(TRAIN, COLD_TRAIN, VALIDATION, VALIDATION_REPEAT, COLD_VALIDATION)
    return Fold(
        train=train,
        train_validation=train_validation,
        validation=_targets(of(VALIDATION, COLD_VALIDATION), train, met, train),
        test=_targets(of(TEST), train_validation, met_later, train),
    )


def _targets(targets: Events, history: Events, met: Events, train: Events) -> Targets:
    users = np.flatnonzero(np.diff(targets.offsets))
    known = history.histories.take(users)
    return Targets(
        users=users,
        history=known,
        exclude=known if len(met) == len(history) else met.histories.take(users),
        items=targets.histories.take(users),
        new_users=np.diff(train.offsets)[users] == 0,
    )


def _read_events(path: Path, user_ids: IdMap, item_ids: IdMap) -> Events:
    table = pq.read_table(path, read_dictionary=[schema.USER_ID, schema.ITEM_ID])
    users = _rows(table.column(schema.USER_ID), user_ids)
    items = _rows(table.column(schema.ITEM_ID), item_ids)
    if (users < 0).any() or (items < 0).any() or (np.diff(users) < 0).any():
        raise ArtifactError(f"{path}: its events do not fit the user and item tables beside it: prepare again")
    counts = np.bincount(users, minlength=len(user_ids))
    return Events(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(counts)]).astype(np.int64),
        items=items,
        timestamps=table.column(schema.TIMESTAMP).to_numpy(),
        weights=table.column(schema.WEIGHT).to_numpy(),
        num_items=len(item_ids),
    )


def _rows(column: pa.ChunkedArray, ids: IdMap) -> IntArray:
    chunks = column.unify_dictionaries().chunks
    if not chunks:
        return np.zeros(0, np.int64)
    rows = ids.rows_of_column(chunks[0].dictionary)
    return np.concatenate([rows[chunk.indices.to_numpy()] for chunk in chunks])


def _with_absolute_pictures(items: pa.Table, directory: Path, folder: str) -> pa.Table:
    """Pictures that came as bytes lie inside the artifact, the others below `folder`."""
    column = items.column(schema.IMAGE)
    names = pc.replace_substring(column, INSIDE, "", max_replacements=1)
    own = pc.binary_join_element_wise(str(directory.resolve()), names, "/")
    others = pc.binary_join_element_wise(folder, column, "/")
    paths = pc.if_else(pc.starts_with(column, INSIDE), own, others)
    return items.set_column(items.column_names.index(schema.IMAGE), schema.IMAGE, paths)


def _ragged(column: pa.ChunkedArray) -> Ragged:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    values = pc.list_flatten(column).to_numpy().astype(np.int64)
    return Ragged(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
