"""What training sees of items: which words, lines and parts of pictures, and that it follows from seed, epoch, item."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, DataError
from recsys_ray.core.schema import IMAGE, IMAGE_HASH, ITEM_ID, TEXT, Fields
from recsys_ray.encoders.config import ImageConfig, TextConfig, TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.item_inputs import build_item_inputs, token_words
from recsys_ray.encoders.two_tower import TwoTower, build, trained_backbones
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.augment import Augmentation, look, uniform
from recsys_ray.training.batches import BatchMaker, StepBatch
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput, load_input, save_input
from recsys_ray.training.fit import fit_in_process
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.progress import TrainResult

pytestmark = pytest.mark.slow

Cut = Callable[[TwoTower, TrainInput, TrainingConfig, Path], TrainResult]
Settings = Callable[..., TrainingConfig]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "coat", "warm", "old", "##ish", "new"]
SIZE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
ROWS = torch.arange(40)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """40 items with texts of up to three lines and noisy pictures; the last has neither."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def line() -> str:
        return " ".join(generator.choice(["red", "blue", "shoe", "oldish", "newish", "warm"], generator.integers(1, 5)))

    texts = ["\n".join(line() for _ in range(1 + row % 3)) for row in range(39)]
    paths = [str(folder / f"{row}.png") for row in range(39)]
    for path in paths:
        Image.fromarray(generator.integers(0, 255, (24, 24, 3)).astype(np.uint8)).save(path)
    columns = {ITEM_ID: list(map(str, range(40))), TEXT: [*texts, None], IMAGE: [*paths, None]}
    return pa.table({**columns, IMAGE_HASH: [*paths, None]})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TwoTower:
    from transformers import BertConfig, BertModel, BertTokenizerFast, ViTConfig, ViTImageProcessorPil, ViTModel

    folder = tmp_path_factory.mktemp("backbones")
    torch.manual_seed(0)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    bert = BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, hidden_dropout_prob=0.0, **SIZE)
    BertModel(bert).save_pretrained(folder / "bert")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder / "bert")
    ViTModel(ViTConfig(image_size=16, patch_size=8, hidden_dropout_prob=0.0, **SIZE)).save_pretrained(folder / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder / "vit")
    text = {"backbone": str(folder / "bert"), "mode": "full", "drop_words": 0.3, "drop_fields": 0.3}
    image = {"backbone": str(folder / "vit"), "mode": "full", "crop": 0.4, "flip": 0.5}
    user = {"blocks": 1, "heads": 2, "history": 8, "dropout": 0.0}
    parts: dict[str, Any] = {"text": text, "image": image, "vectors": None, "attributes": None, "user": user}
    return build(TwoTowerConfig.parse({"dim": 16, **parts}), Fields(), 40, {})


@pytest.fixture(scope="module")
def seen(items: pa.Table, model: TwoTower, data: TrainInput) -> TrainInput:
    """The random events over these items."""
    backbones = trained_backbones(model)
    inputs = build_item_inputs(items, Fields(), model.config, {}, backbones)
    return replace(data, inputs=inputs, words=token_words(items, backbones["text"]))


def tokens(inputs: ItemInputs, row: int) -> list[str]:
    values = inputs.values["text"]
    return [WORDS[token] for token in values["input_ids"][row][values["attention_mask"][row] > 0].tolist()]


def test_whole_words_and_whole_lines_are_left_out(items: pa.Table, model: TwoTower, seen: TrainInput) -> None:
    dropped: dict[str, int] = {"word": 0, "line": 0, "all": 0}
    for name, changes in {"word": {"text.drop_fields": 0.0}, "line": {"text.drop_words": 0.0}}.items():
        augmentation = Augmentation(override(model.config, changes), seen.words, 7)
        for epoch in range(6):
            left = augmentation.texts(seen.inputs, ROWS, epoch)
            for row, text in enumerate(items.column(TEXT).to_pylist()[:39]):
                units = text.split() if name == "word" else text.split("\n")
                pieces = [unit.replace("ish", " ##ish").split() for unit in units]
                words = tokens(left, row)
                assert (words[0], words[-1]) == ("[CLS]", "[SEP]")
                # Every way to leave units out, and the text is one of them.
                ways = {
                    tuple(piece for place, unit in enumerate(pieces) for piece in unit if ways >> place & 1)
                    for ways in range(1, 1 << len(pieces))
                }
                assert tuple(words[1:-1]) in ways
                dropped[name] += len(tokens(seen.inputs, row)) > len(words)
                dropped["all"] += 1
    assert 0.3 * dropped["all"] / 2 < dropped["word"]
    assert 0.1 * dropped["all"] / 2 < dropped["line"]


def test_the_share_that_is_left_out_is_that_of_the_settings(model: TwoTower, seen: TrainInput) -> None:
    words = torch.arange(400).repeat(2, 40, 1)
    words[1] = 0
    whole = {"input_ids": torch.ones((40, 400), dtype=torch.int64), "attention_mask": torch.ones((40, 400)).long()}
    long = ItemInputs({"text": whole}, {"text": torch.ones(40, dtype=torch.bool)})
    config = override(model.config, {"text.drop_fields": 0.0})
    left = Augmentation(config, words.short(), 0).texts(long, ROWS, 0).values["text"]["attention_mask"]
    assert left.double().mean().item() == pytest.approx(0.7, abs=0.01)


def test_pictures_are_squares_of_the_whole_made_as_large(model: TwoTower, seen: TrainInput) -> None:
    augmentation, pixels = Augmentation(model.config, seen.words, 3), seen.inputs.values["image"]["pixels"]
    views = augmentation.views(ROWS, 1)
    assert views is not None
    found = look(seen.inputs, views).values["image"]["pixels"]
    assert found.dtype == torch.uint8
    assert found.shape == pixels.shape
    side, left, top, mirrored = views.unbind(1)
    assert (side**2).min() >= 0.4 - 1e-6
    assert (side**2).max() <= 1.0
    assert ((left >= 0) & (left + side <= 1 + 1e-6) & (top >= 0) & (top + side <= 1 + 1e-6)).all()
    assert 0 < int(mirrored.sum()) < 40
    for row in range(10):
        np.testing.assert_allclose(found[row].numpy(), slowly(pixels[row], *views[row].tolist()), atol=1)


def slowly(pixels: Tensor, side: float, left: float, top: float, mirrored: float) -> np.ndarray:
    """Bilinear sampling, pixel by pixel."""
    size, picture = pixels.shape[1], pixels.double().numpy()
    out = np.zeros(picture.shape)
    for y in range(size):
        for x in range(size):
            across = (size - 1 - x if mirrored else x) + 0.5
            at = [(top + side * (y + 0.5) / size) * size - 0.5, (left + side * across / size) * size - 0.5]
            at = [min(max(one, 0.0), size - 1.0) for one in at]
            low = [int(one) for one in at]
            high = [min(one + 1, size - 1) for one in low]
            v, u = at[0] - low[0], at[1] - low[1]
            upper = (1 - u) * picture[:, low[0], low[1]] + u * picture[:, low[0], high[1]]
            lower = (1 - u) * picture[:, high[0], low[1]] + u * picture[:, high[0], high[1]]
            out[:, y, x] = ((1 - v) * upper + v * lower).round()
    return out


def test_a_whole_view_leaves_every_pixel_as_it_is(seen: TrainInput) -> None:
    whole, mirror = torch.tensor([1.0, 0, 0, 0]).expand(40, 4), torch.tensor([1.0, 0, 0, 1]).expand(40, 4)
    pixels = seen.inputs.values["image"]["pixels"]
    assert torch.equal(look(seen.inputs, whole).values["image"]["pixels"], pixels)
    assert torch.equal(look(seen.inputs, mirror).values["image"]["pixels"], pixels.flip(3))


def test_random_numbers_follow_from_key_and_row_alone_and_are_even() -> None:
    rows = np.array([5, 900_000, 5, 17])
    drawn = uniform((1, 2, 0), rows, 50)
    np.testing.assert_array_equal(drawn[0], drawn[2])
    np.testing.assert_array_equal(drawn[[3]], uniform((1, 2, 0), rows[3:], 50))
    np.testing.assert_array_equal(drawn[:, :20], uniform((1, 2, 0), rows, 20))
    others = [uniform(key, rows, 50) for key in ((1, 2, 1), (1, 3, 0), (2, 2, 0))]
    assert all((drawn != other).mean() > 0.99 for other in others)
    many = uniform((0, 0, 0), np.arange(20_000), 8)
    assert abs(np.corrcoef(many.T) - np.eye(8)).max() < 0.03
    assert np.histogram(many, 10, (0, 1))[0] / many.size == pytest.approx(0.1, abs=0.002)
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 0.03


def batch(seen: TrainInput, model: TwoTower, config: TrainingConfig, place: tuple[int, int], epoch: int) -> StepBatch:
    maker = BatchMaker(seen, 8, config, place, Augmentation(model.config, seen.words, config.seed))
    draw = NegativeSampler(seen.train.item_counts(), 15, 0.5, 0).draw(0)
    pairs = PairSampler(seen.inputs, config, place).draw(0)
    return maker.make(next(iter(maker.epoch(0))), draw, pairs, epoch).looked_at()


def views_of(one: StepBatch) -> dict[int, tuple[bytes, bytes]]:
    """Item row to the tokens and pixels that are shown of it."""
    items = one.inputs.items
    text, pixels = items.values["text"], items.values["image"]["pixels"]
    shown = torch.cat([text["input_ids"] * text["attention_mask"], text["attention_mask"]], dim=1)
    rows = items.values["id"]["row"].tolist()
    found: dict[int, tuple[bytes, bytes]] = {}
    for place, row in enumerate(rows):
        view = shown[place].numpy().tobytes(), pixels[place].numpy().tobytes()
        assert found.setdefault(row, view) == view  # wherever it stands in the batch
    return found


def test_an_item_looks_alike_on_any_number_of_workers_and_anew_each_epoch(
    seen: TrainInput, model: TwoTower, settings: Settings
) -> None:
    config = settings(alignment=0.5, alignment_items=6)
    alone = views_of(batch(seen, model, config, (0, 1), 2))
    for world_size in (2, 3):
        several = [views_of(batch(seen, model, config, (rank, world_size), 2)) for rank in range(world_size)]
        assert {row for one in several for row in one} == set(alone)
        assert all(view == alone[row] for one in several for row, view in one.items())
    later = views_of(batch(seen, model, config, (0, 1), 3))
    assert sum(later[row] == view for row, view in alone.items()) <= 1
    other = views_of(batch(seen, model, settings(alignment=0.5, alignment_items=6, seed=1), (0, 1), 2))
    assert sum(other[row] == alone[row] for row in set(other) & set(alone)) <= 1


def test_a_run_that_was_cut_sees_what_it_would_have_seen(
    seen: TrainInput, model: TwoTower, settings: Settings, tmp_path: Path, cut_within_an_epoch: Cut
) -> None:
    config = settings(checkpoint_steps=2, epochs=2)
    undisturbed = fit_in_process(copy.deepcopy(model), seen, config)
    plain = override(
        model.config, {"text.drop_words": 0.0, "text.drop_fields": 0.0, "image.crop": 1.0, "image.flip": 0}
    )
    whole = copy.deepcopy(TwoTower(plain, model.spec, model.item_tower, model.user_tower))
    assert fit_in_process(whole, seen, config).records[0].loss != undisturbed.records[0].loss
    resumed = cut_within_an_epoch(model, seen, config, tmp_path)
    assert [record.loss for record in resumed.records] == [record.loss for record in undisturbed.records]
    assert all(torch.equal(tensor, resumed.weights[name]) for name, tensor in undisturbed.weights.items())


def test_the_words_come_back_from_files(seen: TrainInput, tmp_path: Path) -> None:
    save_input(tmp_path, seen)
    back = load_input(tmp_path)
    assert back.words is not None
    assert seen.words is not None
    assert torch.equal(back.words, seen.words)


def test_settings_without_effect_are_refused(model: TwoTower) -> None:
    with pytest.raises(ConfigError, match='drop_words and drop_fields 0 with mode "frozen"'):
        TextConfig.parse({"drop_words": 0.1})
    with pytest.raises(ConfigError, match='crop 1 and flip 0 with mode "frozen"'):
        ImageConfig.parse({"crop": 0.5})
    assert not TextConfig.parse({"mode": "lora"}).augmented
    with pytest.raises(DataError, match="the words of the texts are not known"):
        Augmentation(model.config, None, 0)
