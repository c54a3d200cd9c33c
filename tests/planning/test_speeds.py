"""The laws of the predictions, and what the calibration measures on small indexes really built."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.index.faiss_index import build
from recsys_ray.planning.calibration import _holds_at, _need, made_queries, made_vectors
from recsys_ray.planning.speeds import Curve, Goal, Need, family
from tests.planning.test_serving import SPEEDS

CURVE = Curve((1000, 10_000, 100_000), (1e-5, 5e-5, 1e-3))


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_more_vectors_never_take_less(first, second):
    small, large = sorted((first, second))
    assert CURVE(small) <= CURVE(large)


def test_past_what_was_measured_the_last_rate_goes_on():
    assert CURVE(1_100_000) - CURVE(100_000) == pytest.approx(1_000_000 * CURVE.rate(10**6))


def test_a_need_grows_in_powers_of_two():
    need = Need(10_000, 20.0, 0.5)
    assert [need(size) for size in (1000, 10_000, 160_000)] == [32, 32, 128]
    assert math.isinf(Need(10_000, math.inf, 0.0)(10**6))


def test_probes_beyond_those_that_are_tried_hold_nothing():
    assert SPEEDS.setting("IVF1024,SQ8", 100_000) == 128
    assert math.isinf(SPEEDS.setting("IVF65536,SQ8", 10**9))


def test_a_family_is_a_factory_without_numbers():
    assert family("PQ64x4fs,RFlat") == "PQxfs,RFlat"


def test_the_setting_found_holds_the_recall_on_the_index_itself():
    vectors, goal = made_vectors(6000, 16), Goal(10, 0.95)
    setting, index = _holds_at(vectors, "IVF,Flat", goal)
    queries = made_queries(vectors)
    true = np.argsort(-queries @ vectors.T, axis=1)[:, : goal.k]

    def recall(probes):
        found = index.with_parameters(f"nprobe={probes}").index.search(queries, goal.k)[1]
        return np.mean([len(set(a) & set(b)) / goal.k for a, b in zip(found.tolist(), true.tolist(), strict=True)])

    above = 2 ** math.ceil(math.log2(setting))
    assert recall(above) >= goal.recall
    assert above == 1 or recall(above // 2) < goal.recall


def test_a_graph_needs_no_less_where_there_are_more_vectors():
    need, index = _need(made_vectors(2000, 16), "HNSW", Goal(10, 0.9))
    assert need.power >= 0
    assert index.factory == build(index.vectors, "HNSW32").factory
