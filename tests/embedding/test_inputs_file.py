from pathlib import Path

import torch

from recsys_ray.embedding.inputs_file import read_rows, write_inputs
from recsys_ray.encoders.inputs import ItemInputs


def test_any_range_of_rows_is_read_alone(tmp_path: Path):
    values = {
        "text": {"input_ids": torch.arange(12).view(6, 2), "attention_mask": torch.ones(6, 2, dtype=torch.long)},
        "vectors:a b.c": {"vector": torch.randn(6, 3)},
    }
    inputs = ItemInputs(values, {name: torch.rand(6) < 0.5 for name in values})
    write_inputs(tmp_path / "x", inputs)
    for start, stop in ((0, 6), (2, 4), (5, 6)):
        part, expected = read_rows(tmp_path / "x", start, stop), inputs.take(torch.arange(start, stop))
        assert {name: mask.tolist() for name, mask in part.present.items()} == {
            name: mask.tolist() for name, mask in expected.present.items()
        }
        for name, tensors in expected.values.items():
            assert all(torch.equal(part.values[name][key], tensor) for key, tensor in tensors.items())
