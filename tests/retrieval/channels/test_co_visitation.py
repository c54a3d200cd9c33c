import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.core import metrics
from recsys_ray.core.arrays import Ragged
from recsys_ray.core.events import Events
from recsys_ray.core.ids import IdMap
from recsys_ray.core.schema import Fields
from recsys_ray.retrieval.channels import co_visitation
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.query import Queries

NUM_ITEMS = 6


def events_of(sequences: list[list[int]], num_items: int = NUM_ITEMS) -> Events:
    users = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
    items = np.array([item for sequence in sequences for item in sequence], np.int64)
    ones = np.ones(len(items), np.float32)
    return Events.from_columns(users, items, np.arange(len(items)), ones, len(sequences), num_items)


def data_of(events: Events) -> FitData:
    return FitData(events, pa.table({"item_id": [str(row) for row in range(events.num_items)]}), Fields())


def test_scores_follow_the_formula() -> None:
    events = events_of([[0, 1, 2], [0, 2], [1, 2, 0, 0]])
    config = CoVisitationConfig(window=2, transpose=0.25, source_exponent=0.3, target_exponent=0.7, decay=0.5)
    channel = co_visitation.fit("co", config, data_of(events))
    counts = np.array([[0, 1, 0.5, 0, 0, 0], [0.5, 0, 1, 0, 0, 0], *np.zeros((4, 6))], np.float32)
    counts[0] = [1, 1, 1.5, 0, 0, 0]  # 0 0 | 0 1 | 0 _ 2, 0 2
    counts[1] = [0.5, 0, 2, 0, 0, 0]  # 1 _ 0 | 1 2, 1 2
    counts[2] = [1.5, 0, 0, 0, 0, 0]  # 2 0, 2 _ 0
    users = np.maximum(np.array([3, 2, 3, 0, 0, 0]), 1.0)
    table = (counts + 0.25 * counts.T) * users[:, None] ** -0.3 * users[None, :] ** -0.7
    expected = 0.5 * table[1] + table[0]
    scores = channel.scores(Queries.of_histories(Ragged.of([[1, 0]]), Ragged.of([[1]])))[0]
    np.testing.assert_allclose(scores, np.where((expected > 0) & (np.arange(6) != 1), expected, -np.inf), rtol=1e-5)


def test_pruning_keeps_the_best_neighbours() -> None:
    events = events_of([[0, 1, 2, 3], [0, 1], [0, 1, 2]])
    whole = co_visitation.fit("co", CoVisitationConfig(), data_of(events)).table.matrix().toarray()
    pruned = co_visitation.fit("co", CoVisitationConfig(neighbours=2), data_of(events)).table.matrix().toarray()
    assert ((pruned > 0).sum(1) <= 2).all()
    expected = -np.sort(-whole, axis=1)[:, :2]
    np.testing.assert_allclose(-np.sort(-pruned, axis=1)[:, :2], expected, rtol=1e-6)


@pytest.mark.shared_data
def test_amazon_beauty_reproduces_the_published_figure(shared_data) -> None:
    """Directed co-occurrence, counts from train only, queries with train and validation: R@10 .078."""
    table = pq.read_table(shared_data / "amazon_beauty" / "interactions.parquet")
    items = IdMap(pq.read_table(shared_data / "amazon_beauty" / "items.parquet").column("item_id").to_pylist())
    users = IdMap(table.column("user_id").unique().to_pylist())
    events = Events.from_columns(
        users.rows_of_column(table.column("user_id")),
        items.rows_of_column(table.column("item_id")),
        table.column("timestamp").to_numpy(),
        np.ones(len(table), np.float32),
        len(users),
        len(items),
    )
    from_end = np.repeat(events.offsets[1:], np.diff(events.offsets)) - np.arange(len(events))
    channel = co_visitation.fit("co", CoVisitationConfig(), data_of(events.where(from_end > 2)))
    history, targets = events.where(from_end > 1).histories, events.where(from_end == 1).items
    ranks = np.concatenate(
        [
            metrics.mean_ranks(channel.scores(Queries.of_histories(history.take(rows))), targets[rows])
            for rows in np.array_split(np.arange(len(users)), 40)
        ]
    )
    assert metrics.recall(ranks, np.arange(len(users)), len(users), 10).mean() == pytest.approx(0.078, abs=0.003)
