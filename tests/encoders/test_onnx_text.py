from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_ray.core.errors import ArtifactError, NotApplicable
from recsys_ray.encoders import onnx_export
from recsys_ray.encoders.onnx_export import export_text, quantise
from recsys_ray.encoders.onnx_text import FULL_FILE, INT8_FILE, OnnxFacts, load_onnx_text
from recsys_ray.encoders.text import load_text_backbone

pytestmark = pytest.mark.slow

onnx = pytest.importorskip("onnx", reason="onnx: pip install 'recsys-ray[cpu]'")
onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX Runtime: pip install 'recsys-ray[cpu]'")

TEXTS = ["red shoe", "the warm light blue coat", "a", "", "coat shoe red the warm light blue a coat", "unheard of"]


@pytest.fixture(scope="module")
def folder(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose layers matter: fresh ones add so little that no rounding in them shows."""
    backbone = load_text_backbone(str(text_checkpoint), max_tokens=8, precision="fp32")
    with torch.no_grad():
        for weight in (one for one in backbone.model.encoder.parameters() if one.dim() == 2):
            weight.mul_(8)
    saved = tmp_path_factory.mktemp("saved")
    backbone.save(saved)
    return saved


@pytest.fixture(scope="module")
def exported(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported")
    export_text(folder, TEXTS, target)
    return target


def test_the_graph_answers_as_the_model(folder: Path, exported: Path) -> None:
    expected = load_text_backbone(str(folder), precision="fp32").encode(TEXTS, 4)
    encoder = load_onnx_text(exported, FULL_FILE)
    np.testing.assert_allclose(encoder.encode(TEXTS, 4), expected, atol=1e-5)
    assert encoder.encode([], 4).shape == (0, encoder.dim)


def test_a_text_has_one_vector_whatever_it_is_encoded_with(exported: Path) -> None:
    encoder = load_onnx_text(exported, INT8_FILE)
    many = TEXTS * 5
    alone = np.concatenate([encoder.encode([text], 1) for text in many])
    np.testing.assert_allclose(encoder.encode(many, 16), alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(many[::-1], 3), alone[::-1], atol=1e-5)


def test_what_is_near_enough_is_written_down(folder: Path, exported: Path) -> None:
    facts = OnnxFacts.load(exported)
    assert facts.backbone_id == load_text_backbone(str(folder)).id
    assert set(facts.fidelity) == {FULL_FILE, INT8_FILE}
    full = load_text_backbone(str(folder), precision="fp32").encode(TEXTS, 4)
    cosines = (load_onnx_text(exported, INT8_FILE).encode(TEXTS, 4) * full).sum(1)
    assert facts.fidelity[INT8_FILE].min_cosine == pytest.approx(cosines.min(), abs=1e-5)
    assert facts.fidelity[INT8_FILE].mean_cosine == pytest.approx(cosines.mean(), abs=1e-5)
    assert facts.fidelity[INT8_FILE].min_cosine < facts.fidelity[FULL_FILE].min_cosine == pytest.approx(1, abs=1e-5)


def test_what_strays_too_far_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "MIN_COSINE", 0.99999)
    facts = export_text(folder, TEXTS, tmp_path)
    assert set(facts.refused) == {INT8_FILE}
    assert set(facts.fidelity) == {FULL_FILE}
    assert not (tmp_path / INT8_FILE).exists()
    assert "int8.onnx refused" in capsys.readouterr().err


@pytest.mark.parametrize("seed", range(5))
def test_products_are_those_of_the_formula(tmp_path: Path, seed: int) -> None:
    """s_row s_column (round(x / s_row) . round(W / s_column)), also where a row or a column is all zeros."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((24, 7)).astype(np.float32) * rng.lognormal(0, 2, 7).astype(np.float32)
    inputs = rng.standard_normal((3, 5, 24)).astype(np.float32) * rng.lognormal(0, 2, (3, 5, 1)).astype(np.float32)
    weight[:, 2], inputs[1, 3] = 0, 0
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", "L", 24])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", "L", 7])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]), tmp_path / "full.onnx")
    quantise(tmp_path / "full.onnx", tmp_path / "int8.onnx")
    found = onnxruntime.InferenceSession(str(tmp_path / "int8.onnx")).run(None, {"x": inputs})[0]

    columns = np.maximum(np.abs(weight).max(0) / 63, 1e-12)
    rows = np.maximum(np.abs(inputs).max(-1, keepdims=True) / 127, 1e-12)
    expected = (np.rint(inputs / rows) @ np.rint(weight / columns)) * rows * columns
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max(-1, keepdims=True).max())
    assert not found[1, 3].any()
    assert not found[..., 2].any()


def test_a_model_that_no_graph_holds_is_left_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "_MOST_BYTES", 1000)
    with pytest.raises(NotApplicable, match="do not fit one ONNX file"):
        export_text(folder, TEXTS, tmp_path)


def test_a_broken_graph_is_named(exported: Path, tmp_path: Path) -> None:
    for file in exported.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / INT8_FILE).write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=INT8_FILE):
        load_onnx_text(tmp_path, INT8_FILE)


@pytest.mark.weights
def test_the_packaged_model_keeps_its_neighbours_in_int8(tmp_path: Path) -> None:
    words = ["red", "warm", "winter", "coat", "shoe", "bag", "old", "film", "about", "war", "love", "garden", "tools"]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(60)]
    load_text_backbone("package:minilm").save(tmp_path / "saved")
    (tmp_path / "exported").mkdir()
    torch.set_num_threads(1)
    facts = export_text(tmp_path / "saved", texts, tmp_path / "exported")
    assert facts.fidelity[INT8_FILE].mean_cosine > 0.99
    assert facts.fidelity[INT8_FILE].min_cosine > 0.97
