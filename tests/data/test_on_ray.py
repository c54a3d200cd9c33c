import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core import schema
from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.core.config import override
from recsys_ray.data.event_log import read_events
from recsys_ray.data.prepare import prepare
from recsys_ray.data.sources import DataConfig
from recsys_ray.data.split import SplitConfig

pytestmark = pytest.mark.ray

BAD = [(None, "i1", 5, 1.0), ("u1", None, 5, 1.0), ("u1", "i1", None, 1.0), ("u1", "i1", 5, -1.0), ("u1", "i1", 5, 1.0)]


def log(count=300):
    good = [(f"u{row % 17}", f"i{row % 23}", row // 3, 1.0 + row % 2) for row in range(count)]
    return [*good[:100], *BAD, *good[100:], good[7], good[8]]


def write(folder, kind):
    rows = log()
    if kind == "parquet":
        columns = dict(zip(("user_id", "item_id", "timestamp", "weight"), zip(*rows, strict=True), strict=True))
        pq.write_table(
            pa.table({name: list(values) for name, values in columns.items()}), folder / "e.parquet", row_group_size=40
        )
    elif kind == "csv":
        lines = [",".join("" if cell is None else f'"{cell}"' for cell in row) for row in rows]
        lines.insert(50, "just one")
        (folder / "e.csv").write_text("\n".join(["user_id,item_id,timestamp,weight", *lines]) + "\n")
    else:
        lines = [json.dumps(dict(zip(("user_id", "item_id", "timestamp", "weight"), row, strict=True))) for row in rows]
        lines.insert(50, "{broken")
        (folder / "e.jsonl").write_text("\n".join(lines) + "\n")
    return DataConfig(events=str(folder / f"e.{kind}"), columns={"weight": "weight"})


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_ray_and_arrow_read_the_same_rows(ray_cluster, tmp_path, kind):
    config = write(tmp_path, kind)
    here = read_events("data.events", config.events, config)
    by_ray = read_events("data.events", config.events, override(config, {"ray_above_bytes": 0}), piece_bytes=1500)
    assert by_ray.equals(here)
    assert here.num_rows == len(log()) + (kind != "parquet")


def test_ray_and_arrow_prepare_the_same_dataset(ray_cluster, tmp_path):
    config = write(tmp_path, "csv")
    (tmp_path / "items.csv").write_text("item_id\n" + "".join(f"i{row}\n" for row in range(20)))
    config = override(config, {"items": str(tmp_path / "items.csv"), "max_rejected_fraction": 0.5})
    store = ArtifactStore(tmp_path / "store")
    files = [
        store.publish(
            "dataset",
            str(size),
            lambda d, size=size: prepare(override(config, {"ray_above_bytes": size}), SplitConfig(), d),
            {},
            {},
        ).manifest.files
        for size in (0, 1 << 30)
    ]
    assert files[0] == files[1]
    rejected = pq.read_table(store.path("dataset", "0") / schema.REJECTED_FILE)
    assert len(set(rejected.column("reason").to_pylist())) == 7
