from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import DataError
from recsys_ray.core.events import Events
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.training.data import TrainInput, load_input, save_input


def test_what_is_saved_comes_back(data: TrainInput, tmp_path: Path) -> None:
    values = {**data.inputs.values, "vectors:a b/c": {"vector": torch.rand(len(data.inputs), 3)}}
    present = {**data.inputs.present, "vectors:a b/c": torch.rand(len(data.inputs)) > 0.5}
    whole = replace(data, inputs=ItemInputs(values, present), user_tokens=np.arange(60).reshape(30, 2))
    save_input(tmp_path, whole)
    back = load_input(tmp_path)
    assert back.train.num_items == whole.train.num_items
    np.testing.assert_array_equal(back.train.items, whole.train.items)
    np.testing.assert_array_equal(back.user_tokens, whole.user_tokens)
    assert back.validation is not None
    assert whole.validation is not None
    np.testing.assert_array_equal(back.validation.history.values, whole.validation.history.values)
    np.testing.assert_array_equal(back.validation.items.offsets, whole.validation.items.offsets)
    assert torch.equal(back.inputs.values["vectors:a b/c"]["vector"], values["vectors:a b/c"]["vector"])
    assert torch.equal(back.inputs.present["vectors:a b/c"], present["vectors:a b/c"])


def test_what_was_shown_comes_back(data: TrainInput, tmp_path: Path) -> None:
    shown = Ragged.of([range(place % 3) for place in range(len(data.train))])
    save_input(tmp_path, replace(data, shown=shown))
    back = load_input(tmp_path).shown
    assert back is not None
    np.testing.assert_array_equal(back.values, shown.values)
    np.testing.assert_array_equal(back.offsets, shown.offsets)


def test_without_validation_and_tokens(data: TrainInput, tmp_path: Path) -> None:
    save_input(tmp_path, replace(data, validation=None))
    back = load_input(tmp_path)
    assert back.validation is None
    assert back.user_tokens is None
    assert back.shown is None
    assert back.tokens_of(np.array([1])) is None


def test_a_catalogue_of_another_size_is_refused(data: TrainInput) -> None:
    train = data.train
    with pytest.raises(DataError, match="40 items, the events count 41"):
        replace(data, train=Events(train.offsets, train.items, train.timestamps, train.weights, 41))


def test_no_events_are_refused(data: TrainInput) -> None:
    with pytest.raises(DataError, match="no event"):
        replace(data, train=data.train.where(np.zeros(len(data.train), bool)))
