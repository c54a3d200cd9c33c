"""Cold items and what each modality is worth, through a whole run on small synthetic data."""

from pathlib import Path

import numpy as np
import pytest

from recsys_ray.config import RunConfig
from recsys_ray.core.artifacts import open_artifact
from recsys_ray.core.config import override
from recsys_ray.data.dataset import load_dataset
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.embedding.encode import embed_items, read_vectors
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.two_tower import load_towers
from recsys_ray.pipeline import run
from recsys_ray.presets import PRESETS


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("run")
    data = make_synthetic(folder / "raw", users=120, items=80, events_per_user=12, seed=3)
    changes = {
        "storage": str(folder / "storage"),
        "data": data.model_dump(),
        "model.text": None,
        "split.cold_items": 0.2,
        "channels": {"nearest": {"kind": "nearest"}},
        "evaluation.sample_users": 0,
    }
    return override(PRESETS["tiny"](), changes)


def only(storage: str, kind: str) -> Path:
    (found,) = (Path(storage) / "artifacts" / kind).iterdir()
    return found


def test_cold_items_are_asked_for_and_embedded_by_their_content(config: RunConfig) -> None:
    report = run(config, until="evaluate").require_report()
    dataset = load_dataset(open_artifact(only(config.storage, "dataset"), "dataset"))
    (fold,) = dataset.folds
    cold = fold.train.item_counts() == 0
    assert cold.sum() >= round(0.2 * np.count_nonzero(dataset.events.item_counts()))
    assert report["buckets"]["cold"]["n"] == cold[fold.test.items.values].sum() > 0
    headings = [section["heading"] for section in report["sections"]]
    assert headings[0] == "What each modality finds: recall@10"
    rows = {row[0]: row[1:] for row in report["sections"][0]["rows"]}
    assert rows["id"][0] == (~cold).sum()
    assert rows["id"][-1] == 0.0  # of cold items the id says nothing
    _, vectors = read_vectors(only(config.storage, "vectors") / "vectors.parquet")
    model = load_towers(only(config.storage, "towers"))
    unknown = np.full(len(cold), -1)
    by_content = build_item_inputs(dataset.items, dataset.fields, model.config, {}, id_rows=unknown)
    apart = np.abs(vectors - embed_items(model, by_content, 1024)).max(1)
    assert apart[cold].max() < 1e-6 < 1e-3 < apart[~cold].min()


def test_it_can_be_left_out(config: RunConfig) -> None:
    report = run(override(config, {"evaluation.modalities": 0}), until="evaluate").require_report()
    assert report["sections"] == []
