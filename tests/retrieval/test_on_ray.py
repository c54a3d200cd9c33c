from functools import partial

import numpy as np
import pytest

from recsys_ray.core.events import Events
from recsys_ray.retrieval.channels.counting import co_occurrences, damped, visited_pairs
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.shards import SHARD_EVENTS, user_shards
from recsys_ray.retrieval.on_ray import map_on_ray


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_counts_on_ray_equal_one_process_to_the_last_bit() -> None:
    import pyarrow as pa

    from recsys_ray.core.schema import Fields

    rng = np.random.default_rng(0)
    users = rng.integers(0, 20_000, 2 * SHARD_EVENTS + 1000)
    items = (rng.zipf(1.3, len(users)) - 1) % 400
    events = Events.from_columns(users, items, np.arange(len(users)), np.ones(len(users)), 20_000, 400)
    assert len(user_shards(events)) == 3
    here = FitData(events, pa.table({}), Fields())
    there = FitData(events, pa.table({}), Fields(), map_shards=map_on_ray)
    for count in (
        partial(visited_pairs, window=3, gap_exponent=1.0, transpose=0.3),
        partial(co_occurrences, weigh=partial(damped, exponent=1.0)),
    ):
        ((_, one),) = count(here)
        ((_, many),) = count(there)
        for part in ("indptr", "indices", "data"):
            assert getattr(one, part).tobytes() == getattr(many, part).tobytes()
