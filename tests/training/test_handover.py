"""At ZeRO stage 3 towers come into a worker in shards: none ever has all of them, and the training is the same."""

import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_ray.core.events import Events
from recsys_ray.core.schema import ITEM_ID, TEXT, Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.item_inputs import build_item_inputs
from recsys_ray.encoders.two_tower import TwoTower, build, trained_backbones
from recsys_ray.training.data import TrainInput, save_input
from recsys_ray.training.handover import hand_over

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("sharded_worker.py")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe", "coat", "warm", "light", "old", "new"]
ITEMS, USERS = 24, 10
FIELDS = Fields(title="title", text=("title",))
CASES = {
    # Eight layers, so that one of them is little beside all.
    "large": ({"hidden_size": 128, "num_hidden_layers": 8, "intermediate_size": 512}, {"mode": "full"}, {}),
    "lora": ({"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}, {"mode": "lora"}, {}),
    "bf16": (
        {"hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 64},
        {"mode": "lora"},
        {"precision": "bf16"},
    ),
}
Facts = dict[str, int]


def towers(folder: Path, size: dict[str, int], text: dict[str, Any]) -> TwoTower:
    import transformers as hf

    torch.manual_seed(1)
    config = hf.BertConfig(vocab_size=len(WORDS), max_position_embeddings=16, num_attention_heads=2, **size)
    hf.BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    hf.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    user = {"blocks": 1, "heads": 2, "history": 8}
    parts = {"image": None, "vectors": None, "attributes": None, "text": {"backbone": str(folder), **text}}
    return build(TwoTowerConfig.parse({"dim": 16, "user": user, **parts}), FIELDS, ITEMS, {})


def inputs(model: TwoTower) -> TrainInput:
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(WORDS[5:], 1 + row % 3)) for row in range(ITEMS)]
    items = pa.table({ITEM_ID: [f"i{row}" for row in range(ITEMS)], "title": texts, TEXT: texts})
    users = np.sort(generator.integers(0, USERS, 60))
    bought = generator.integers(0, ITEMS, 60)
    events = Events.from_columns(users, bought, np.arange(60), np.ones(60, np.float32), USERS, ITEMS)
    return TrainInput(build_item_inputs(items, FIELDS, model.config, {}, trained_backbones(model)), events)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two workers through all cases, in shards and whole."""
    directory = tmp_path_factory.mktemp("sharded")
    settings = {"engine": "deepspeed", "zero_stage": 3, "workers": 2, "batch_size": 10, "negatives": 12}
    settings |= {"epochs": 2, "patience": None, "precision": "fp32", "learning_rate": 1e-3}
    for name, (size, text, changes) in CASES.items():
        model = towers(directory / f"{name}_bert", size, text)
        (directory / name).mkdir()
        (directory / f"{name}.pickle").write_bytes(pickle.dumps(hand_over(model, directory / name)))
        (directory / f"{name}.json").write_text(json.dumps({**settings, **changes}))
        if name == "lora":
            (directory / "input").mkdir()
            save_input(directory / "input", inputs(model))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    cases = [f"{name}-{way}" for name in CASES for way in ("sharded", "whole")]
    logs = [directory / f"log{rank}.txt" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), "2", str(port), str(directory), *cases],
            env=environment,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    for process, log in zip(processes, logs, strict=True):
        assert process.wait(timeout=240) == 0, log.read_text()[-4000:]
    return directory


def facts(out: Path, case: str) -> list[Facts]:
    """What each of the two workers has seen."""
    return [json.loads((out / f"{case}_{rank}.json").read_text()) for rank in range(2)]


def test_no_worker_ever_holds_all_parameters(out: Path) -> None:
    for seen in facts(out, "large-whole"):
        assert seen["whole"] > 20 * seen["largest"]
        assert seen["live"] >= seen["taken"] == seen["whole"]
    for seen in facts(out, "large-sharded"):
        assert seen["taken"] < seen["whole"] / 2 + seen["largest"]
        # A step wants a few modules whole at once: the one that runs, and those that are on their way.
        assert seen["live"] < seen["whole"] / 2 + 4 * seen["largest"]
        assert seen["live"] < 0.75 * seen["whole"]


@pytest.mark.parametrize("name", CASES)
def test_created_in_shards_the_towers_train_as_those_that_were_whole(out: Path, name: str) -> None:
    sharded, whole = (dict(np.load(out / f"{name}-{way}.npz")) for way in ("sharded", "whole"))
    assert list(sharded) == list(whole)
    assert sharded["losses"][1] < sharded["losses"][0]
    for key, values in whole.items():
        np.testing.assert_array_equal(sharded[key], values, err_msg=key)
