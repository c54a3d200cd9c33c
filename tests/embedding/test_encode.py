from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ArtifactError
from recsys_ray.core.schema import IMAGE, TEXT, Fields
from recsys_ray.embedding.cache import FeatureCache
from recsys_ray.embedding.encode import compute_features, embed_items, plan, read_vectors, write_vectors
from recsys_ray.encoders.backbones import load_backbone
from recsys_ray.encoders.config import ImageConfig, TextConfig, TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import pieces_of
from recsys_ray.encoders.two_tower import build


class Counting:
    """A real backbone that counts what it encodes, and may fail after some of it as a crash would."""

    def __init__(self, config: TextConfig, fail_after: int | None = None) -> None:
        self._inner = load_backbone(config)
        self.encoded: list[str] = []
        self.id, self.dim = self._inner.id, self._inner.dim
        self._fail_after = fail_after

    def encode(self, pieces: Sequence[str], batch_size: int) -> FloatArray:
        if self._fail_after is not None and len(self.encoded) >= self._fail_after:
            raise KeyboardInterrupt
        self.encoded += pieces
        return self._inner.encode(pieces, batch_size)

    def preprocess(self, pieces: Sequence[str]) -> dict[str, npt.NDArray[np.generic]]:
        return self._inner.preprocess(pieces)


def test_features_equal_those_of_the_backbone_alone(items: pa.Table, text_config: TextConfig, tmp_path: Path):
    backbone = load_backbone(text_config.model_copy(update={"precision": "fp32"}))
    table = compute_features(items, "text", backbone, tmp_path, 16)
    texts = items.column(TEXT).to_pylist()
    assert table.present.tolist() == [text is not None for text in texts]
    expected = backbone.encode([text or "" for text in texts], 300)
    assert np.allclose(table.vectors[table.present], expected[table.present], atol=1e-5)
    assert (table.vectors[~table.present] == 0).all()


def test_only_contents_not_seen_before_are_encoded(items: pa.Table, text_config: TextConfig, tmp_path: Path):
    backbone = Counting(text_config)
    texts = items.column(TEXT).to_pylist()
    first = compute_features(items, "text", backbone, tmp_path, 16)
    distinct = {text for text in texts if text is not None}
    assert sorted(backbone.encoded) == sorted(distinct)
    changed = items.set_column(items.column_names.index(TEXT), TEXT, pa.array(["brand new", *texts[1:]]))
    again = compute_features(changed.take(list(reversed(range(len(items))))), "text", backbone, tmp_path, 16)
    assert backbone.encoded[len(distinct) :] == ["brand new"]
    assert np.array_equal(again.vectors[::-1][1:], first.vectors[1:])


def test_a_crash_loses_at_most_one_chunk(items: pa.Table, text_config: TextConfig, tmp_path: Path):
    chunks = plan(pieces_of(items, "text"), FeatureCache(tmp_path, "none", 16))
    assert len(chunks) > 1
    crashing = Counting(text_config, fail_after=1)
    with pytest.raises(KeyboardInterrupt):
        compute_features(items, "text", crashing, tmp_path, 16)
    resumed = Counting(text_config)
    compute_features(items, "text", resumed, tmp_path, 16)
    assert crashing.encoded == chunks[0].contents
    assert not set(crashing.encoded) & set(resumed.encoded)


def test_pictures_that_cannot_be_read_are_absent_and_counted(
    items: pa.Table, image_config: ImageConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    table = compute_features(items, "image", load_backbone(image_config), tmp_path, 16)
    named = np.array([path is not None for path in items.column(IMAGE).to_pylist()])
    expected = named.copy()
    expected[[0, 4]] = False
    assert table.present.tolist() == expected.tolist()
    assert f"image: 2 of {named.sum()} cannot be read" in capsys.readouterr().err


def make_inputs(count: int) -> ItemInputs:
    values = {"text": {"vector": torch.randn(count, 6)}, "id": {"row": torch.arange(count)}}
    present = {"text": torch.rand(count) < 0.7, "id": torch.rand(count) < 0.7}
    return ItemInputs(values, present)


@pytest.mark.parametrize("training", [False, True])
def test_items_are_embedded_in_any_batch_size_without_dropout(training: bool):
    model = build(TwoTowerConfig(dim=8), Fields(), 50, {"text": 6}).train(training)
    inputs = make_inputs(50)
    vectors = embed_items(model, inputs, 7)
    assert model.training is training
    assert np.allclose(vectors, embed_items(model, inputs, 1000), atol=1e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_vectors_survive_the_file(tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    write_vectors(tmp_path / "v.parquet", ["a", "b", "c", "d"], vectors)
    ids, read = read_vectors(tmp_path / "v.parquet")
    assert ids == ["a", "b", "c", "d"]
    assert np.array_equal(read, vectors)
    with pytest.raises(ArtifactError, match="holds no item vectors"):
        read_vectors(tmp_path / "w.parquet")
