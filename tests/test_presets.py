"""The presets for GPUs: what they ask for, that it fits, and that they train where the GPU is taken away."""

import pytest
from transformers import BertConfig, BertModel, BertTokenizerFast

from recsys_ray.core.config import override
from recsys_ray.data.synthetic import make_synthetic
from recsys_ray.pipeline import run
from recsys_ray.planning.memory import Room, Sizes
from recsys_ray.planning.stage_memory import plan_memory
from recsys_ray.presets import PRESETS

SIZES = Sizes(items=100_000, users=200_000, events=3_000_000)


@pytest.mark.parametrize(("name", "gpu_gb"), [("gpu_small", 24), ("gpu_large", 80)])
def test_a_worker_fits_its_gpu(name, gpu_gb):
    room = Room(host_bytes=1e12, gpu_bytes=0.9 * gpu_gb * 1e9)
    needs = [need for need in plan_memory(PRESETS[name](), SIZES) if need.kind == "gpu"]
    assert {need.stage for need in needs} >= {"train", "embed"}
    assert all(room.fits(need) for need in needs)


def test_the_large_one_derives_from_the_small_one():
    small, large = PRESETS["gpu_small"](), PRESETS["gpu_large"]()
    assert large.model.text.backbone == small.model.text.backbone
    assert large.model.text.checkpointing
    assert (large.training.engine, large.training.zero_stage) == ("deepspeed", 3)
    assert large.training.batch_size == large.training.workers * small.training.batch_size


def test_the_small_one_trains_its_text_encoder_where_the_gpu_is_taken_away(tmp_path):
    data = make_synthetic(tmp_path / "raw", users=40, items=30, events_per_user=6, seed=1)
    on_cpu = {
        "data": data.model_dump(),
        "storage": str(tmp_path / "storage"),
        "model.text.backbone": _text_checkpoint(tmp_path / "bert"),
        "model.image": None,
        "training.gpus": 0,
        "training.workers": 0,
        "training.epochs": 1,
        "embedding.gpus": 0,
    }
    run(override(PRESETS["gpu_small"](), on_cpu), until="train")
    (towers,) = (tmp_path / "storage" / "artifacts" / "towers").iterdir()
    assert (towers / "backbones" / "text" / "config.json").is_file()


def _text_checkpoint(folder):
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(words), **shape)).save_pretrained(folder)
    return str(folder)
