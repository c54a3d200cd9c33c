from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recsys_ray.core.errors import ConfigError
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.training.alignment import Pairs, PairSampler, alignment_loss, show_alone
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.fit import fit_in_process

Settings = Callable[..., TrainingConfig]


def inputs_of(**present: list[bool]) -> ItemInputs:
    masks = {name: torch.tensor(mask) for name, mask in present.items()}
    return ItemInputs({name: {"vector": torch.ones(len(mask), 3)} for name, mask in masks.items()}, masks)


def test_the_loss_is_the_mean_of_both_directions() -> None:
    generator = np.random.default_rng(0)
    texts, pictures = (F.normalize(torch.from_numpy(generator.normal(size=(5, 4))), dim=1) for _ in range(2))
    logits = (texts @ pictures.T / 0.2).numpy()
    exp = np.exp(logits)
    by_text, by_picture = np.diag(exp) / exp.sum(1), np.diag(exp) / exp.sum(0)
    expected = -(np.log(by_text).mean() + np.log(by_picture).mean()) / 2
    pairs = Pairs(torch.arange(5), torch.arange(5), 5, 1.0)
    assert alignment_loss(torch.stack([texts, pictures]).float(), pairs, 0.2).item() == pytest.approx(expected, 1e-5)


def test_items_with_both_are_drawn_the_same_by_all_ranks_and_each_once(settings: Settings) -> None:
    text, image = [True] * 9 + [False], [False] + [True] * 9
    inputs, config = inputs_of(text=text, image=image), settings(alignment=0.5, alignment_items=5)
    whole = [PairSampler(inputs, config, (0, 1)).draw(step) for step in range(40)]
    assert set(torch.cat([pairs.rows for pairs in whole]).tolist()) == set(range(1, 9))
    for step, pairs in enumerate(whole):
        assert len(set(pairs.rows.tolist())) == pairs.count == 5
        parts = [PairSampler(inputs, config, (rank, 3)).draw(step) for rank in range(3)]
        assert torch.equal(torch.cat([part.rows for part in parts]), pairs.rows)
        assert torch.equal(torch.cat([part.places for part in parts]), pairs.places)
        assert {part.count for part in parts} == {5}
    few = PairSampler(inputs, settings(alignment=0.5), (0, 1)).draw(0)
    assert sorted(few.rows.tolist()) == list(range(1, 9))


def test_without_alignment_nothing_is_drawn(settings: Settings) -> None:
    for inputs in (inputs_of(id=[True] * 3), inputs_of(text=[True] * 3, image=[True] * 3)):
        pairs = PairSampler(inputs, settings(), (0, 1)).draw(0)
        assert (pairs.count, len(pairs.rows), len(pairs.places)) == (0, 0, 0)


@pytest.mark.parametrize("inputs", [inputs_of(text=[True] * 3), inputs_of(text=[True, True], image=[True, False])])
def test_nothing_to_align_is_an_error(settings: Settings, inputs: ItemInputs) -> None:
    with pytest.raises(ConfigError, match=r"training\.alignment: got 0\.5; allowed: 0 here"):
        PairSampler(inputs, settings(alignment=0.5), (0, 1))


def test_the_last_items_show_their_text_or_their_picture_alone() -> None:
    shown = show_alone(inputs_of(text=[True] * 6, image=[True] * 6, id=[True] * 6), 2)
    assert shown.present["text"].tolist() == [True, True, True, True, False, False]
    assert shown.present["image"].tolist() == [True, True, False, False, True, True]
    assert shown.present["id"].tolist() == [True, True, False, False, False, False]
    untouched = inputs_of(text=[True, False], image=[False, True])
    assert show_alone(untouched, 0).present["text"].tolist() == [True, False]


def test_training_draws_text_and_picture_of_an_item_together(small: ModuleType, settings: Settings) -> None:
    data = small.small_data(content=True)
    both = torch.ones(small.NUM_ITEMS, dtype=torch.bool)
    data = replace(data, inputs=ItemInputs(data.inputs.values, dict.fromkeys(data.inputs.present, both)))

    def ranks(alignment: float) -> float:
        """Mean place of an item's picture among all, asked by its text."""
        model = small.small_towers(content=True)
        fit_in_process(model, data, settings(alignment=alignment, epochs=15, learning_rate=0.02))
        model.eval()
        with torch.no_grad():
            texts, pictures = (
                model.item_tower(ItemInputs({name: data.inputs.values[name]}, {name: both}))
                for name in ("text", "image")
            )
        scores = texts @ pictures.T
        return float((scores > scores.diagonal()[:, None]).sum(1).float().mean())

    assert ranks(1.0) < 0.5 * ranks(0.0)
