from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_ray.core.errors import ArtifactError, NotApplicable
from recsys_ray.core.schema import Fields
from recsys_ray.encoders import onnx_user
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.onnx_user import USER_TOWER_FILE, export_user_tower, load_user_tower
from recsys_ray.encoders.two_tower import TwoTower, build

pytestmark = pytest.mark.slow

pytest.importorskip("onnx", reason="onnx: pip install 'recsys-ray[cpu]'")
pytest.importorskip("onnxruntime", reason="ONNX Runtime: pip install 'recsys-ray[cpu]'")

HISTORY = 12


def make_model(user_tokens: bool = True, members: tuple[str, ...] = ("all",), positions: str = "rotary") -> TwoTower:
    user = {"blocks": 2, "heads": 2, "history": HISTORY, "positions": positions, "dropout": 0.3}
    values = {"dim": 16, "text": None, "image": None, "vectors": None, "members": members, "user": user}
    fields = Fields(user_tokens={"young": 1, "old": 2} if user_tokens else {})
    model = build(TwoTowerConfig.parse(values), fields, 5, {}).eval()
    with torch.no_grad():  # fresh attributes are too small to show
        for name, weight in model.user_tower.named_parameters():
            if "attributes" in name:
                weight.normal_()
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(make_model(), id="rotary"),
        pytest.param(make_model(positions="learned"), id="learned"),
        pytest.param(make_model(user_tokens=False), id="no attributes"),
        pytest.param(make_model(members=("all", "id")), id="two members"),
    ],
)
def test_the_graph_answers_as_the_tower(model: TwoTower, tmp_path: Path) -> None:
    assert export_user_tower(model, tmp_path / USER_TOWER_FILE) > 0.99999
    graph = load_user_tower(tmp_path / USER_TOWER_FILE)
    generator = torch.Generator().manual_seed(3)
    for count, length in ((1, 1), (1, HISTORY), (7, 5)):
        vectors = torch.randn(count, length, model.config.width, generator=generator)
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        mask = torch.arange(length) >= torch.randint(0, length + 1, (count, 1), generator=generator)
        tokens = torch.randint(0, 3, (count, 2), generator=generator) if model.spec.num_user_tokens > 1 else None
        for asked in {None, tokens}:
            with torch.inference_mode():
                expected = model.user_tower(vectors, mask, asked, newest=True)[:, -1]
            found = graph(vectors.numpy(), mask.numpy(), None if asked is None else asked.numpy())
            np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_exporting_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    export_user_tower(model, tmp_path / USER_TOWER_FILE)
    assert not model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_graph_that_strays_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_user, "_MIN_COSINE", 1.1)
    with pytest.raises(NotApplicable, match="cosine"):
        export_user_tower(make_model(), tmp_path / USER_TOWER_FILE)
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / USER_TOWER_FILE).write_bytes(b"no graph")
    with pytest.raises(ArtifactError, match=USER_TOWER_FILE):
        load_user_tower(tmp_path / USER_TOWER_FILE)
