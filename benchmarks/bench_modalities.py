"""What text, pictures and ids are worth: towers trained with each alone and with all, cold items included.

    python benchmarks/bench_modalities.py [FOLDER] [--storage FOLDER] [--cold SHARE] [--short] [--set dotted.path=value]

The folder holds items.parquet (texts, and paths of pictures), interactions.parquet and, where there are some,
users.parquet; without it, ml1m below $RECSYS_RAY_DATA. A tenth of the items is kept cold. Every variant is a training
of its own under the same settings and seed, so each is as good as it can be; the frozen vectors that the towers read
are ranked by nearest neighbours beside them, as the peer on cold items. `--short` trains small towers for a look.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_ray import override, presets, run
from recsys_ray.core.config import parse_assignments

DATA = Path(os.environ.get("RECSYS_RAY_DATA", Path(__file__).parents[2] / "shared" / "data"))
METRIC = "recall@20"
TOWERS, ALL, ID = "nearest", "text + image + id", "id"
NEIGHBOURS = {"text_knn": {"kind": "nearest", "space": "text"}, "image_knn": {"kind": "nearest", "space": "image"}}
WARM = ("head", "mid", "tail")
COLUMNS = (*WARM, "warm", "cold", "among cold")
BASE: dict[str, Any] = {
    "channels": {TOWERS: {"kind": "nearest"}},
    "model.attributes": None,
    "model.vectors": None,
    "model.members": ["all"],
    "training.workers": 0,
    "evaluation.sample_users": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    ALL: {"channels": {**NEIGHBOURS, TOWERS: {"kind": "nearest"}}},
    ID: {"model.text": None, "model.image": None},
    "text": {"model.image": None, "model.id": None},
    "image": {"model.text": None, "model.id": None},
}
SHORT = {"model.dim": 32, "training.epochs": 3, "training.batch_size": 256}


@dataclass(frozen=True)
class Row:
    """Recall by popularity of the target of one ranking, None where nothing was sought; and how many were."""

    values: dict[str, float | None]
    counts: dict[str, int]


def row_of(report: dict[str, Any], ranking: str) -> Row:
    """A ranking's recall in each bucket, over all warm targets, and of cold ones among themselves."""
    buckets = {**report["buckets"], "among cold": report["among_cold"] or {"n": 0}}
    counts = {name: int(buckets[name]["n"]) for name in (*WARM, "cold", "among cold")}
    values: dict[str, float | None] = {
        name: buckets[name][ranking][METRIC] if count else None for name, count in counts.items()
    }
    counts["warm"] = sum(counts[name] for name in WARM)
    values["warm"] = sum(counts[name] * (values[name] or 0.0) for name in WARM) / max(counts["warm"], 1)
    return Row(values, counts)


def measure(folder: Path, storage: Path, settings: dict[str, Any]) -> dict[str, Row]:
    """One training a variant, and nearest neighbours in the frozen spaces."""
    files = {"items": "items", "events": "interactions", "users": "users"}
    paths = {f"data.{part}": folder / f"{name}.parquet" for part, name in files.items()}
    base = {**BASE, **{name: str(path) for name, path in paths.items() if path.exists()}}
    rows = {}
    for name, changes in VARIANTS.items():
        here = {"name": f"{folder.name}: {name}", "storage": str(storage / folder.name)}
        report = run(override(presets.cpu(), {**base, **here, **settings, **changes}), until="evaluate")
        values = report.require_report()
        rows |= {"towers, " + name: row_of(values, TOWERS)}
        rows |= {knn: row_of(values, knn) for knn in NEIGHBOURS if knn in values["metrics"]}
    return rows


def show(rows: dict[str, Row]) -> None:
    """The table, and under it each row divided by the first."""
    first = next(iter(rows.values()))
    print(f"{METRIC:26}" + "".join(f"{name:>14}" for name in COLUMNS))
    print(f"{'targets':26}" + "".join(f"{first.counts[name]:>14,}" for name in COLUMNS))
    for name, row in rows.items():
        print(f"{name:26}" + "".join(f"{_number(row.values[column]):>14}" for column in COLUMNS))
    for name, row in list(rows.items())[1:]:
        print(
            f"{'all / ' + name:26}"
            + "".join(f"{_number(_ratio(first.values[column], row.values[column])):>14}" for column in COLUMNS)
        )


def judge(rows: dict[str, Row]) -> list[bool]:
    """Print each target with what was reached."""
    everything = rows["towers, " + ALL].values
    targets = [
        (f"{column}, all against towers with {name} alone", everything[column], rows["towers, " + name].values[column])
        for column in ("tail", "cold")
        for name in list(VARIANTS)[1:]
    ]
    met = [_told(text, ours, peer, 1.0) for text, ours, peer in targets]
    knn = max((rows[name].values["cold"] or 0.0 for name in NEIGHBOURS if name in rows), default=None)
    met.append(_told("cold, all against the better nearest neighbours of frozen vectors", everything["cold"], knn, 1.1))
    met.append(_told("warm, all against ids alone", everything["warm"], rows["towers, " + ID].values["warm"], 0.99))
    return met


def _told(text: str, ours: float | None, peer: float | None, at_least: float) -> bool:
    ratio = _ratio(ours, peer)
    # Against a peer that finds nothing, finding anything is enough.
    met = (ours or 0.0) > 0 if ratio is None else ratio > at_least
    print(
        f"{'met' if met else 'MISSED'}: {text}: {_number(ours)} / {_number(peer)} = {_number(ratio)}, {at_least} wanted"
    )
    return met


def _ratio(ours: float | None, peer: float | None) -> float | None:
    return ours / peer if ours is not None and peer else None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def main() -> int:
    """Print the table and the targets; the last line is `met N of M`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=DATA / "ml1m")
    parser.add_argument("--storage", type=Path, default=Path(".bench/modalities"), help="where artifacts stay")
    parser.add_argument("--cold", type=float, default=0.1, help="share of the items that is kept cold")
    parser.add_argument("--short", action="store_true", help="small towers, three epochs")
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE", help="over the preset; repeat it")
    arguments = parser.parse_args()
    if not (arguments.folder / "items.parquet").is_file():
        print(f"no data: give a folder, or set RECSYS_RAY_DATA ({arguments.folder} has no items.parquet)")
        return 0
    settings = {**(SHORT if arguments.short else {}), "split.cold_items": arguments.cold}
    rows = measure(arguments.folder, arguments.storage, {**settings, **parse_assignments(arguments.set)})
    show(rows)
    met = judge(rows)
    print(f"met {sum(met)} of {len(met)}")
    return int(not all(met))


if __name__ == "__main__":
    raise SystemExit(main())
