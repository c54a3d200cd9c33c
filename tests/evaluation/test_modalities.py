from dataclasses import replace

import numpy as np
import pytest
import torch

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.schema import Fields
from recsys_ray.data.dataset import Targets
from recsys_ray.encoders.config import TwoTowerConfig
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TwoTower, build
from recsys_ray.evaluation.modalities import ALL, by_modality, modality_sections
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.settings import EvaluationConfig

ITEMS, QUERIES = 30, 12
CONFIG = EvaluationConfig(bootstrap_samples=100, block_bytes=1000)


@pytest.fixture(scope="module")
def model() -> TwoTower:
    torch.manual_seed(0)
    user = {"blocks": 1, "heads": 2, "history": 8}
    config = TwoTowerConfig.parse({"dim": 8, "attributes": None, "vectors": None, "user": user})
    return build(config, Fields(), ITEMS, {"text": 6, "image": 5}).eval()


@pytest.fixture(scope="module")
def inputs() -> ItemInputs:
    """Every third item lacks a text, every fifth a picture; the last ten ids are unknown."""
    rows = torch.arange(ITEMS)
    generator = torch.Generator().manual_seed(1)
    values = {
        "text": {"vector": torch.randn(ITEMS, 6, generator=generator)},
        "image": {"vector": torch.randn(ITEMS, 5, generator=generator)},
        "id": {"row": rows},
    }
    return ItemInputs(values, {"text": rows % 3 > 0, "image": rows % 5 > 0, "id": rows < 20})


@pytest.fixture(scope="module")
def questions() -> Questions:
    generator = np.random.default_rng(2)
    history = Ragged.of([generator.integers(0, ITEMS, generator.integers(0, 6)) for _ in range(QUERIES)])
    items = Ragged.of([generator.choice(ITEMS, 2, replace=False) for _ in range(QUERIES)])
    targets = Targets(np.arange(QUERIES), history, history, items, np.zeros(QUERIES, bool))
    counts = np.where(np.arange(ITEMS) < 20, np.arange(ITEMS) + 1, 0)
    return Questions("test", targets, counts)


def places(model: TwoTower, inputs: ItemInputs, questions: Questions) -> list[float]:
    """One query and one target at a time, with what `inputs` says of the items."""
    known = torch.stack(list(inputs.present.values())).any(0).numpy()
    with torch.no_grad():
        vectors = model.item_tower(inputs)
    found = []
    targets = questions.targets
    for row in range(len(targets)):
        history = [item for item in targets.history[row] if known[item]]
        for target in targets.items[row]:
            allowed = known.copy()
            allowed[targets.exclude[row]] = False
            if not allowed[target] or not history:
                found.append(np.inf)
                continue
            with torch.no_grad():
                read = vectors[history][None]
                query = model.user_tower(read, torch.ones(1, len(history), dtype=torch.bool), None)[0, -1]
            scores = (vectors @ query).numpy()
            found.append(float(((scores > scores[target] + 1e-6) & allowed).sum()))
    return found


def test_each_modality_ranks_by_what_it_knows_alone(model: TwoTower, inputs: ItemInputs, questions: Questions) -> None:
    done = by_modality(model, inputs, questions, CONFIG)
    assert done.items == {"text": 20, "image": 24, "id": 20, ALL: ITEMS}
    for name in ("text", "image", "id"):
        assert done.replay.ranks[name].tolist() == places(model, inputs.only(name), questions)
    assert done.replay.ranks[ALL].tolist() == places(model, inputs, questions)
    cold = done.replay.buckets == 3
    assert cold.any()
    assert np.isinf(done.replay.ranks["id"][cold]).all()


def test_the_tables_say_what_each_finds_and_whether_all_find_more(
    model: TwoTower, inputs: ItemInputs, questions: Questions
) -> None:
    done = by_modality(model, inputs, questions, CONFIG)
    first, _, together = modality_sections([done, done], CONFIG)
    assert first.columns[:3] == ("shown of each item", "items", "all, n = 48")
    hits = [(ranks < 10).mean() for ranks in done.replay.ranks.values()]
    assert [row[:2] for row in first.rows] == list(done.items.items())
    assert [row[2] for row in first.rows] == pytest.approx(hits)
    rows = {row[:2]: row[2:] for row in together.rows}
    best, alone, everything, _, verdict = rows["all", "recall@10"]
    assert alone == pytest.approx(max(hits[:-1])) == pytest.approx(hits[list(done.items).index(best)])
    assert everything == pytest.approx(hits[-1])
    assert verdict in ("more", "less", "too close to call")
    equal = replace(done, replay=replace(done.replay, ranks=dict.fromkeys(done.replay.ranks, done.replay.ranks[ALL])))
    assert {row[-1] for row in modality_sections([equal], CONFIG)[-1].rows} == {"too close to call"}


def test_one_modality_has_nothing_to_compare_with(model: TwoTower, inputs: ItemInputs, questions: Questions) -> None:
    assert modality_sections([by_modality(model, inputs.only("id"), questions, CONFIG)], CONFIG) == []
