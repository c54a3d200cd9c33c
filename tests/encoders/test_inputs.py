import torch

from recsys_ray.encoders.inputs import ItemInputs


def test_some_modalities_alone():
    present = {"text": torch.tensor([True, False]), "id": torch.tensor([True, True])}
    inputs = ItemInputs({"text": {"vector": torch.ones(2, 3)}, "id": {"row": torch.arange(2)}}, present)
    alone = inputs.only("text")
    assert list(alone.values) == list(alone.present) == ["text"]
    assert alone.present["text"].tolist() == [True, False]
    assert len(alone.take(torch.tensor([1, 1, 0]))) == 3
