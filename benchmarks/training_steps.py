"""Data, towers and steps that `bench_training.py` measures, and the step that is common elsewhere."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.precision import has_bf16
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.encoders.user_tower import UserTower
from recsys_ray.training.alignment import PairSampler
from recsys_ray.training.batches import BatchMaker, StepBatch, pad_windows
from recsys_ray.training.config import TrainingConfig
from recsys_ray.training.data import TrainInput
from recsys_ray.training.fit import build_engine
from recsys_ray.training.negatives import NegativeSampler
from recsys_ray.training.optimizer import build_adamw
from recsys_ray.training.step import local_loss, train_step

DIM = 64
TEMPERATURE = 0.05
STEP_ITEMS, STEP_HISTORY, STEP_BATCH = 12_000, 50, 128
SMALL_BERT = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 512}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}


def sequences(num_items: int = STEP_ITEMS) -> TrainInput:
    """Histories of 5 and more events, 9 on average, over items of Zipf popularity."""
    generator = np.random.default_rng(0)
    lengths = np.minimum(4 + generator.geometric(0.2, 4_000), STEP_HISTORY)
    popularity = 1.0 / np.arange(10, num_items + 10)
    users = np.repeat(np.arange(len(lengths)), lengths)
    items = generator.choice(num_items, len(users), p=popularity / popularity.sum())
    columns = (users, items, np.arange(len(users)), np.ones(len(users), np.float32))
    inputs = ItemInputs({"id": {"row": torch.arange(num_items)}}, {"id": torch.ones(num_items, dtype=torch.bool)})
    return TrainInput(inputs, Events.from_columns(*columns, len(lengths), num_items))


def id_towers(num_items: int = STEP_ITEMS, dim: int = DIM) -> TwoTower:
    torch.manual_seed(0)
    absent = dict.fromkeys(("text", "image", "attributes", "vectors"))
    config = TwoTowerConfig.parse({"dim": dim, **absent, "user": {"history": STEP_HISTORY}})
    return build(config, Fields(), num_items, {})


class Steps:
    """Whole steps of the loop, making the batch included; the same batches in each instance."""

    def __init__(self, model: TwoTower, data: TrainInput, config: TrainingConfig) -> None:
        self.engine, self._temperature = build_engine(model, config), model.config.temperature
        self._maker = BatchMaker(data, model.config.user.history, config, (0, 1))
        self._sampler = NegativeSampler(data.train.item_counts(), config.negatives, 0.5, 0)
        self._pairs = PairSampler(data.inputs, config, (0, 1))
        self._windows = (windows for epoch in count() for windows in self._maker.epoch(epoch))
        self._step = 0

    @property
    def precision(self) -> str:
        return "bf16" if has_bf16(self.engine.device.type) else "fp32"

    def batch(self) -> StepBatch:
        self._step += 1
        return self._maker.make(next(self._windows), self._sampler.draw(self._step), self._pairs.draw(self._step))

    def __call__(self) -> float:
        return train_step(self.engine, self.batch(), self._temperature, self._step, 1e-3)

    def kept_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, the weights aside."""
        batch = self.batch()
        weights = {p.untyped_storage().data_ptr() for p in self.engine.model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = local_loss(self.engine, batch, self._temperature)
        del loss
        return sum(kept.values())


class PaddedSteps:
    """What is common: every history padded to the longest allowed, logits over all items, fp32, AdamW."""

    def __init__(self, model: TwoTower, data: TrainInput, config: TrainingConfig) -> None:
        self._items = nn.Embedding(STEP_ITEMS, DIM)
        self._user = UserTower(model.config.user, DIM, model.spec.num_user_tokens)
        self._optimizer = build_adamw(nn.ModuleList([self._items, self._user]), 1e-3, 0.01)
        windows = next(iter(BatchMaker(data, STEP_HISTORY, config, (0, 1)).epoch(0)))
        self._history, self._targets = (
            F.pad(torch.from_numpy(rows), (STEP_HISTORY - rows.shape[1], 0), value=-1)
            for rows in pad_windows(data.train, windows)[:2]
        )

    def __call__(self) -> None:
        vectors = F.normalize(self._items.weight, dim=1)
        queries = self._user(F.embedding(self._history.clamp(min=0), vectors), self._history >= 0, None)
        logits = (queries.flatten(0, 1) / TEMPERATURE) @ vectors.T
        F.cross_entropy(logits, self._targets.flatten(), ignore_index=-1).backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def save_bert(folder: Path, size: dict[str, int]) -> None:
    """A BERT with random weights: neither time nor memory depends on them."""
    import transformers as hf

    hf.logging.disable_progress_bar()
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(2_000))]
    hf.BertModel(hf.BertConfig(vocab_size=len(words), max_position_embeddings=64, **size)).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    hf.BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def text_steps(folder: str, device: str = "cpu", **settings: Any) -> Steps:
    """Steps of towers that train the encoder, over 400 items of 24 tokens; each step meets nearly all of them."""
    torch.manual_seed(0)
    generator, num_items, users = np.random.default_rng(0), 400, 64
    ids = torch.from_numpy(generator.integers(5, 2_000, (num_items, 24)))
    values = {"text": {"input_ids": ids, "attention_mask": torch.ones_like(ids)}}
    inputs = ItemInputs(values, {"text": torch.ones(num_items, dtype=torch.bool)})
    rows = generator.integers(0, num_items, users * 10)
    columns = (np.repeat(np.arange(users), 10), rows, np.arange(len(rows)), np.ones(len(rows), np.float32))
    data = TrainInput(inputs, Events.from_columns(*columns, users, num_items))
    absent = dict.fromkeys(("id", "image", "attributes", "vectors"))
    text = {"backbone": folder, "mode": "full", "max_tokens": 24}
    config = TwoTowerConfig.parse({"dim": DIM, **absent, "text": text, "user": {"history": 10}})
    training = {"workers": 0, "negatives": 256, "batch_size": 32, "precision": "fp32", **settings}
    return Steps(build(config, Fields(), num_items, {}).to(device), data, TrainingConfig.parse(training))
