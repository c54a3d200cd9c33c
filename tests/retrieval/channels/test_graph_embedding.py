import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import NotApplicable
from recsys_ray.core.events import Events
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import graph_embedding
from recsys_ray.retrieval.channels.fit_data import FitData, ValidationPairs
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig
from recsys_ray.retrieval.query import Queries

CONFIG = GraphEmbeddingConfig(dim=8, batch_users=16, max_epochs=30, patience=5)


def data_of(rows: list[list[int]], num_items: int, pairs: ValidationPairs | None = None) -> FitData:
    users = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    items = np.array([item for row in rows for item in row], np.int64)
    ones = np.ones(len(items), np.float32)
    events = Events.from_columns(users, items, np.arange(len(items)), ones, len(rows), num_items)
    return FitData(events, pa.table({"item_id": [str(row) for row in range(num_items)]}), Fields(), {}, pairs)


def two_tastes(seed: int) -> list[list[int]]:
    """Half of the users take from items 0 … 19, half from 20 … 39; one in ten events is of the other half."""
    rng = np.random.default_rng(seed)
    drawn = [rng.integers(0, 20, 8) + 20 * ((user % 2) ^ (rng.random(8) < 0.1)) for user in range(60)]
    return [np.unique(row).tolist() for row in drawn]


def test_a_history_leads_to_the_items_of_its_taste() -> None:
    channel = graph_embedding.fit("graph", CONFIG, data_of(two_tastes(0), 40))
    found = channel.retrieve(Queries.of_histories(Ragged.of([[3, 11], [25, 31]])), 10).rows
    assert (found[0] < 20).mean() > 0.9
    assert (found[1] >= 20).mean() > 0.9


def test_the_second_fit_takes_the_epochs_that_validation_chose() -> None:
    rows = two_tastes(1)
    history, targets = Ragged.of([row[:-1] for row in rows]), Ragged.of([row[-1:] for row in rows])
    data = data_of([row[:-1] for row in rows], 40, ValidationPairs(history, history, targets))
    first = graph_embedding.fit("graph", CONFIG, data)
    assert isinstance(first.config, GraphEmbeddingConfig)
    assert first.config.epochs is not None
    assert first.config.epochs <= CONFIG.max_epochs
    again = graph_embedding.fit("graph", first.config, data_of([row[:-1] for row in rows], 40))
    np.testing.assert_array_equal(first.vectors, again.vectors)


def test_without_anybody_who_met_two_items_it_does_not_apply() -> None:
    with pytest.raises(NotApplicable, match="'graph'"):
        graph_embedding.fit("graph", CONFIG, data_of([[1], [2, 2], []], 5))
