"""The data report: figures for machines (data_report.json), and a page for people (data_report.html)."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.core import schema
from recsys_ray.core.arrays import IntArray
from recsys_ray.core.schema import Fields
from recsys_ray.data.clean import CleanEvents
from recsys_ray.data.rejected import Rejected
from recsys_ray.data.report_page import render_page
from recsys_ray.data.roles import Roles
from recsys_ray.data.split import (
    COLD_VALIDATION,
    TEST,
    TEST_REPEAT,
    TRAIN,
    VALIDATION,
    VALIDATION_REPEAT,
    PartArray,
    SplitConfig,
    future_share,
)

REPORT_JSON, REPORT_HTML = "data_report.json", "data_report.html"
_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True)
class Prepared:
    """All that prepare made, for the report to look at."""

    items: pa.Table
    fields: Fields
    roles: Roles
    clean: CleanEvents
    folds: list[PartArray]
    rejected: Rejected
    split: SplitConfig
    warnings: list[str]


def write_report(prepared: Prepared, directory: Path) -> dict[str, Any]:
    """Write both files; returns the short form that becomes the artifact's summary."""
    figures = describe(prepared)
    (directory / REPORT_JSON).write_text(json.dumps(figures, indent=1) + "\n")
    counts = prepared.clean.events.item_counts()
    per_user = np.diff(prepared.clean.events.offsets)
    (directory / REPORT_HTML).write_text(render_page(figures, counts, per_user))
    short = (
        "users",
        "items",
        "events",
        "exposures",
        "protocol",
        "rows",
        "folds",
        "missing",
        "future_share",
        "warnings",
    )
    return {name: figures[name] for name in short}


def describe(prepared: Prepared) -> dict[str, Any]:
    """Every figure of the report, as JSON values."""
    events = prepared.clean.events
    return {
        "users": events.num_users,
        "items": events.num_items,
        "events": len(events),
        "exposures": len(prepared.clean.exposures),
        "protocol": prepared.split.protocol,
        "density": len(events) / max(events.num_users * events.num_items, 1),
        "time": _time_span(events.timestamps) if events.has_real_time else None,
        "kinds": {row["values"]: row["counts"] for row in pc.value_counts(prepared.clean.kinds).to_pylist()},
        "rows": _rows(prepared.rejected),
        "missing": _missing(prepared.items, prepared.fields),
        "popularity": _popularity(events.item_counts()),
        "events_per_user": _quantiles(np.diff(events.offsets)),
        "repeated_pairs": int(len(events) - events.matrix().nnz),
        "fields": _fields(prepared.roles),
        "tokens": len(prepared.fields.tokens),
        "user_tokens": len(prepared.fields.user_tokens),
        "folds": [_fold(prepared.clean, part) for part in prepared.folds],
        "future_share": future_share(events, prepared.folds[0]) if events.has_real_time else None,
        "warnings": prepared.warnings,
    }


def _rows(rejected: Rejected) -> dict[str, Any]:
    counts = rejected.counts()
    return {
        source: {"in": came, "kept": rejected.rows_kept[source], "rejected": counts.get(source, {})}
        for source, came in rejected.rows_in.items()
    }


def _missing(items: pa.Table, fields: Fields) -> dict[str, int]:
    """How many items lack a modality."""
    columns = {"text": schema.TEXT, "image": schema.IMAGE} | {name: name for name in fields.vectors}
    missing = {label: items.column(name).null_count for label, name in columns.items()}
    missing["attributes"] = int(pc.sum(pc.equal(pc.list_value_length(items.column(schema.TOKENS)), 0)).as_py() or 0)
    return missing


def _popularity(counts: IntArray) -> dict[str, Any]:
    ranked = np.sort(counts)[::-1]
    total, n = max(int(ranked.sum()), 1), max(len(ranked), 1)
    share = {
        f"top_{percent}_percent": float(ranked[: max(n * percent // 100, 1)].sum() / total) for percent in (1, 10, 50)
    }
    weighted = (np.arange(1, n + 1) * ranked[::-1]).sum() if len(ranked) else 0
    gini = 2.0 * float(weighted) / (n * total) - (n + 1) / n
    return {"share_of_events": share, "gini": gini, "items_without_events": int((counts == 0).sum())} | {
        "events_per_item": _quantiles(counts)
    }


def _quantiles(values: IntArray) -> dict[str, float]:
    return {name: float(np.quantile(values, at)) if len(values) else 0.0 for name, at in _QUANTILES.items()}


def _time_span(timestamps: IntArray) -> dict[str, str]:
    first, last = (datetime.fromtimestamp(int(time) / 1e6, UTC) for time in (timestamps.min(), timestamps.max()))
    return {"first": first.isoformat(timespec="seconds"), "last": last.isoformat(timespec="seconds")}


def _fields(roles: Roles) -> dict[str, Any]:
    return {
        "text": roles.text,
        "categorical": roles.categorical,
        "numeric": roles.numeric,
        "vectors": roles.vectors,
        "ignored": roles.ignored,
    }


def _fold(clean: CleanEvents, part: PartArray) -> dict[str, int]:
    events = clean.events
    trained_items = np.bincount(events.items[part == TRAIN], minlength=events.num_items) > 0
    trained_users = np.bincount(events.users[part == TRAIN], minlength=events.num_users) > 0
    figures = {"train_events": int((part == TRAIN).sum())}
    for name, codes in (("validation", (VALIDATION, COLD_VALIDATION)), ("test", (TEST,))):
        mask = np.isin(part, codes)
        users = np.unique(events.users[mask])
        figures[f"{name}_queries"] = len(users)
        figures[f"{name}_targets"] = int(mask.sum())
        figures[f"{name}_cold_targets"] = int((~trained_items[events.items[mask]]).sum())
        figures[f"{name}_new_users"] = int((~trained_users[users]).sum())
    figures["repeats_in_windows"] = int(np.isin(part, (VALIDATION_REPEAT, TEST_REPEAT)).sum())
    return figures
