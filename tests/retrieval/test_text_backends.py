"""What encodes the texts of questions: chosen by what the release offers and what was measured."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from recsys_ray.core.artifacts import open_artifact
from recsys_ray.core.errors import ConfigError
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import TextConfig, TwoTowerConfig, UserTowerConfig
from recsys_ray.encoders.item_inputs import FeatureTable, build_item_inputs
from recsys_ray.encoders.onnx_export import export_text
from recsys_ray.encoders.onnx_text import INT8_FILE
from recsys_ray.encoders.text import load_text_backbone
from recsys_ray.encoders.two_tower import build, save_towers
from recsys_ray.index.spec import IndexConfig
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import FrozenSpace, load_release
from recsys_ray.retrieval.text_backends import TextEncoderConfig, choose, fidelity, measure, offered
from serve_app.config import Live, ServeConfig
from serve_app.deployments import Gateway
from tests.retrieval.test_release import FIELDS, ITEMS, TITLES, N, make_events, make_parts, publish

pytestmark = pytest.mark.slow

pytest.importorskip("onnx", reason="onnx: pip install 'recsys-ray[cpu]'")
pytest.importorskip("onnxruntime", reason="ONNX Runtime: pip install 'recsys-ray[cpu]'")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for title in TITLES for word in title.split()})]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release whose towers and frozen space read texts, by a tiny model that was exported."""
    from transformers import BertConfig, BertModel, BertTokenizer

    root = tmp_path_factory.mktemp("release")
    (root / "bert").mkdir()
    (root / "bert" / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    shape |= {"initializer_range": 0.15}  # or the layers would add so little that no rounding in them shows
    BertModel(BertConfig(vocab_size=len(WORDS), **shape)).save_pretrained(root / "bert")
    BertTokenizer(vocab=str(root / "bert" / "vocab.txt")).save_pretrained(root / "bert")
    text = TextConfig(backbone=str(root / "bert"), precision="fp32")
    backbone = load_text_backbone(text.backbone, precision="fp32")
    features = backbone.encode(TITLES, 16)
    config = TwoTowerConfig(
        dim=16, text=text, image=None, vectors=None, attributes=None, id=None, user=UserTowerConfig(blocks=1, heads=2)
    )
    model = build(config, FIELDS, N, {"text": backbone.dim}).eval()
    vectors = embed_items(
        model, build_item_inputs(ITEMS, FIELDS, config, {"text": FeatureTable(features, np.ones(N, np.bool_))}), 8
    )
    (root / "towers").mkdir()
    space = save_towers(root / "towers", model, {"text": backbone})
    spaces = {"towers": Space(space, vectors, vectors[:3]), "text": Space(backbone.id, features, features[:3])}
    data = FitData(make_events(), ITEMS, FIELDS, spaces, None, IndexConfig(factory="exact"))
    channels = (
        fit_channel("nearest", NearestConfig(), data),
        fit_channel("like", NearestConfig(space="text"), data),
    )
    (root / "onnx").mkdir()
    export_text(root / "towers" / "backbones" / "text", TITLES, root / "onnx")
    parts = replace(
        make_parts(root, channels=channels),
        towers=root / "towers",
        towers_space=space,
        frozen=(FrozenSpace(backbone.id, backbone.dim, "text"),),
        query_text=root / "onnx",
    )
    return publish(root / "store", parts)


@pytest.mark.parametrize("backend", ["torch", "onnx", "onnx-int8"])
def test_every_space_that_reads_texts_is_asked_through_the_backend(made: Path, backend: str) -> None:
    release = load_release(made, TextEncoderConfig(backend=backend))
    full = load_release(made, TextEncoderConfig(backend="torch"))
    queries = Queries.of_texts((TITLES[3], TITLES[11]))
    vectors, expected = release.retriever.encode(queries).vectors, full.retriever.encode(queries).vectors
    assert len(vectors) == 2
    for space, found in vectors.items():
        cosines = (found * expected[space]).sum(1)
        assert cosines.min() > 0.97
        # int8 rounds, the graph in float32 does not: the first must show, or the backend was not asked.
        assert (cosines.min() < 1 - 1e-6) == (backend == "onnx-int8")


def test_items_are_encoded_by_the_full_model(made: Path) -> None:
    release = load_release(made, TextEncoderConfig(backend="onnx-int8"))
    full = load_release(made, TextEncoderConfig(backend="torch"))
    for fast, whole in zip(release.retriever.encoders, full.retriever.encoders, strict=True):
        np.testing.assert_array_equal(fast.of_pieces("text", TITLES[:2]), whole.of_pieces("text", TITLES[:2]))


@pytest.mark.parametrize("backend", ["torch", "onnx", "onnx-int8"])
def test_the_application_answers_as_the_release_with_the_same_backend(made: Path, backend: str) -> None:
    chosen = TextEncoderConfig(backend=backend)
    expected = load_release(made, chosen).search(TITLES[7], k=8)
    app = Gateway(ServeConfig(release=str(made), live=Live(store=None), text_encoder=chosen)).__serve_build_asgi_app__()

    async def ask() -> tuple[dict, dict]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answer = await client.post("/v1/search", json={"text": TITLES[7], "k": 8})
            return answer.json(), (await client.get("/v1/status")).json()

    answer, status = asyncio.run(ask())
    assert [one["item_id"] for one in answer["items"]] == [one.item_id for one in expected]
    assert [one["score"] for one in answer["items"]] == [one.score for one in expected]
    assert status["text_encoder"]["backend"] == backend
    assert ("min_cosine" in status["text_encoder"]["fidelity"]) == (backend != "torch")


def test_the_fastest_offered_is_taken(made: Path) -> None:
    artifact = open_artifact(made, "release")
    assert offered(artifact) == ("onnx-int8", "onnx", "torch")
    assert choose(artifact, TextEncoderConfig()) == "onnx-int8"
    measured = {"torch": 1.0, "onnx": 2.0, "onnx-int8": 3.0}
    assert choose(artifact, TextEncoderConfig(measured_ms=measured)) == "torch"
    assert choose(artifact, TextEncoderConfig(backend="onnx", measured_ms=measured)) == "onnx"
    assert fidelity(artifact, "onnx-int8")["min_cosine"] > 0.97
    assert fidelity(artifact, "torch") == {}


def test_what_was_refused_cannot_be_asked_for(made: Path, tmp_path: Path) -> None:
    artifact = open_artifact(made, "release")
    files = {name: entry for name, entry in artifact.manifest.files.items() if not name.endswith(INT8_FILE)}
    without = replace(artifact, manifest=replace(artifact.manifest, files=files))
    assert choose(without, TextEncoderConfig(measured_ms={"onnx-int8": 0.1, "onnx": 0.2, "torch": 0.3})) == "onnx"
    with pytest.raises(ConfigError, match=r"text_encoder\.backend: got 'onnx-int8'"):
        choose(without, TextEncoderConfig(backend="onnx-int8"))


def test_a_release_that_reads_no_texts_has_nothing_to_choose(tmp_path: Path) -> None:
    path = publish(tmp_path / "store", make_parts(tmp_path))
    assert offered(open_artifact(path, "release")) == ()
    assert choose(open_artifact(path, "release"), TextEncoderConfig(backend="onnx")) is None
    assert measure(path) == {}


def test_measuring_asks_each_backend(made: Path) -> None:
    measured = measure(made)
    assert set(measured) == {"onnx-int8", "onnx", "torch"}
    assert min(measured.values()) > 0
