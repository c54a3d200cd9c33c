import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.core.errors import SpaceError
from recsys_ray.index.exact import ExactIndex
from recsys_ray.retrieval.channels.nearest import NearestChannel, NearestConfig
from recsys_ray.retrieval.query import Queries

VECTORS = np.eye(5, 4, dtype=np.float32)
CHANNEL = NearestChannel("nearest", NearestConfig(), "mine", ExactIndex(VECTORS), {})


def ask(space: str, vectors: np.ndarray) -> Queries:
    empty = Ragged.empty(len(vectors))
    return Queries(empty, empty, (None,) * len(vectors), None, {space: vectors})


def test_vectors_of_another_space_never_meet_the_index() -> None:
    for method in (CHANNEL.scores, lambda queries: CHANNEL.retrieve(queries, 2)):
        with pytest.raises(SpaceError, match="searches space mine; the queries are in other"):
            method(ask("other", VECTORS[:2]))


def test_a_wrong_length_is_refused() -> None:
    with pytest.raises(SpaceError, match="4 dimensions, not 3"):
        CHANNEL.retrieve(ask("mine", VECTORS[:2, :3]), 2)


def test_a_row_of_zeros_has_no_candidates() -> None:
    found = CHANNEL.retrieve(ask("mine", np.stack([VECTORS[2], np.zeros(4, np.float32)])), 2)
    assert found.rows[0, 0] == 2
    assert (found.rows[1] == -1).all()
