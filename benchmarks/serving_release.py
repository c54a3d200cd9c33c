"""The release that bench_serving measures on: made-up items with MiniLM's vectors of their texts, three channels.

    python benchmarks/serving_release.py FOLDER [--items 2000]

"nearest" searches the vectors of the texts, "co_visitation" and "content" (TF-IDF) are sparse tables. There are no
towers, so a history is encoded by a mean of vectors: the route by history asks no model.
"""

import argparse
from pathlib import Path

from recsys_ray.core import schema
from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.data.dataset import load_dataset, prepare
from recsys_ray.data.split import SplitConfig
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.encoders.onnx_export import export_text
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import FrozenSpace, ReleaseParts, write_release

CHANNELS = {
    "nearest": NearestConfig(space="text"),
    "co_visitation": CoVisitationConfig(),
    "content": ContentConfig(space=None),
}
DEPTH = 200


def make_release(folder: Path, items: int) -> Path:
    """Build and publish it; returns its directory."""
    store = ArtifactStore(folder / "storage")
    raw = make_synthetic(folder / "raw", users=items, items=items, events_per_user=20)
    made = store.publish("dataset", "d", lambda target: prepare(raw, SplitConfig(), target), {}, {})
    dataset = load_dataset(made)
    backbone = load_text_backbone("package:minilm")
    backbone.save(folder / "text")
    texts = [text or "" for text in dataset.items.column(schema.TEXT).to_pylist()]
    vectors = backbone.encode(texts, 32)
    (folder / "onnx").mkdir()
    export_text(folder / "text", texts, folder / "onnx")
    spaces = {"text": Space(backbone.id, vectors, vectors[:: max(1, items // 200)])}
    data = FitData(dataset.events, dataset.items, dataset.fields, spaces, None, IndexConfig())
    histories = folder / "histories.parquet"
    write_histories(histories, dataset.user_ids.ids, dataset.events.histories, dataset.item_ids)
    parts = ReleaseParts(
        items=dataset.items,
        fields=dataset.fields,
        channels=tuple(fit_channel(name, config, data) for name, config in CHANNELS.items()),
        fusion=Fusion.equal(list(CHANNELS), DEPTH),
        histories=histories,
        frozen=(FrozenSpace(backbone.id, vectors.shape[1], "text"),),
        backbones={"text": folder / "text"},
        query_text=folder / "onnx",
    )
    return store.publish("release", "r", lambda target: write_release(target, parts), {}, {}).path


def main() -> None:
    """Print where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=2000)
    options = parser.parse_args()
    print(make_release(options.folder, options.items))


if __name__ == "__main__":
    main()
