"""What one release has that another has not."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.core import schema
from recsys_ray.core.artifacts import Artifact
from recsys_ray.core.ids import IdMap
from recsys_ray.online.history import HISTORIES_FILE
from recsys_ray.retrieval.channels.files import CHANNEL_FILE, read_header
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release_files import channel_names
from recsys_ray.retrieval.release_parts import CHANNELS, FUSION_FILE, SETTINGS_FILE

Values = dict[str, Any]
Pair = tuple[Any, Any]


@dataclass(frozen=True)
class Counts:
    """Of items or users: in the second release alone, in the first alone, in both with other fields."""

    new: int
    gone: int
    changed: int = 0


@dataclass(frozen=True)
class ReleaseDiff:
    """From release `a` to release `b`; pairs hold the value of each, None where it has none.

    Attributes:
        a: The id of the first.
        b: The id of the second.
        settings: Dotted path to a pair, of what differs: of the run, and as fitted of channels of both.
        channels: Those of each.
        spaces: Those of each.
        weights: Channel to its weight in the fusion, of those that differ.
        items: Of the catalogues.
        users: Of the histories.
        measured: Metric of the fused lists to a pair, of those that differ.
        num_bytes: Of the files.
    """

    a: str
    b: str
    settings: dict[str, Pair]
    channels: tuple[list[str], list[str]]
    spaces: tuple[list[str], list[str]]
    weights: dict[str, Pair]
    items: Counts
    users: Counts
    measured: dict[str, Pair]
    num_bytes: tuple[int, int]


def diff(a: Artifact, b: Artifact) -> ReleaseDiff:
    """Compare two releases by what is written in them; neither is loaded.

    Raises:
        ArtifactError: When a file of them cannot be read.
    """
    fusions = [Fusion.load(one.file(FUSION_FILE)).weights for one in (a, b)]
    return ReleaseDiff(
        a=a.id,
        b=b.id,
        settings=_differing(*(_settings(one, {*channel_names(a)} & {*channel_names(b)}) for one in (a, b))),
        channels=(channel_names(a), channel_names(b)),
        spaces=(a.summary.get("spaces", []), b.summary.get("spaces", [])),
        weights=_differing(*fusions),
        items=_items(a, b),
        users=_users(a, b),
        measured=_differing(flat(a.summary.get("measured", {})), flat(b.summary.get("measured", {}))),
        num_bytes=(a.num_bytes, b.num_bytes),
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> Values:
    """Nested mappings as dotted paths."""
    found: Values = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) and value else {f"{prefix}{name}": value}
    return found


def _settings(artifact: Artifact, channels: set[str]) -> Values:
    run = json.loads(artifact.file(SETTINGS_FILE).read_text()) if SETTINGS_FILE in artifact.manifest.files else {}
    fitted = {
        name: read_header(artifact.file(f"{CHANNELS}/{name}/{CHANNEL_FILE}").parent).config for name in sorted(channels)
    }
    # What the run was told and what its search chose are two things: both are shown where they differ.
    return flat({"run": run, "fitted": fitted})


def _differing(a: Values, b: Values) -> dict[str, Pair]:
    names = [*a, *(name for name in b if name not in a)]
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}


def _items(a: Artifact, b: Artifact) -> Counts:
    before, after = (pq.read_table(one.file(schema.ITEMS_FILE)) for one in (a, b))
    first, second = (IdMap(table.column(schema.ITEM_ID).to_pylist()) for table in (before, after))
    places = first.rows(second.ids)
    both = np.flatnonzero(places >= 0)
    changed = np.zeros(len(both), np.bool_)
    left, right = before.take(pa.array(places[both])), after.take(pa.array(both))
    for name in {*before.column_names, *after.column_names}:
        changed |= _unlike(_column(left, name), _column(right, name))
    return Counts(len(second) - len(both), len(first) - len(both), int(changed.sum()))


def _column(table: pa.Table, name: str) -> list[Any]:
    return table.column(name).to_pylist() if name in table.column_names else [None] * table.num_rows


def _unlike(left: Iterable[Any], right: Iterable[Any]) -> Any:
    # A number that is none is unlike itself; repr says the same of both.
    return np.array([x != y and repr(x) != repr(y) for x, y in zip(left, right, strict=True)], np.bool_)


def _users(a: Artifact, b: Artifact) -> Counts:
    before, after = (
        set(pq.read_table(one.file(HISTORIES_FILE), columns=[schema.USER_ID]).column(0).to_pylist()) for one in (a, b)
    )
    return Counts(len(after - before), len(before - after))
