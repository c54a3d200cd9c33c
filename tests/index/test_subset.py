import pickle

import numpy as np
import pytest

from recsys_ray.index.subset import Allowed, Subset


@pytest.mark.parametrize("share", [0.0, 0.001, 0.4, 1.0])
def test_it_travels_as_few_bytes(share: float) -> None:
    subset = Subset(np.random.default_rng(0).random(9999) < share)
    sent = pickle.dumps(subset)
    assert len(sent) < 1500
    assert (pickle.loads(sent).mask == subset.mask).all()
    assert subset.size == len(subset.rows) == subset.mask.sum()


def test_each_query_has_its_set() -> None:
    even, odd = (Subset(np.arange(10) % 2 == rest) for rest in (0, 1))
    allowed = Allowed((even, odd), np.array([1, -1, 0, 1]))
    assert [allowed.of(query) for query in range(4)] == [odd, None, even, odd]
    scores = np.zeros((4, 10), np.float32)
    allowed.close(scores)
    assert np.isfinite(scores).sum(1).tolist() == [5, 10, 5, 5]
    assert allowed.take(np.array([2, 1])).choice.tolist() == [0, -1]
