"""The serving plan, over made-up speeds of which the right answers are plain, and against a simulated queue."""

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError
from recsys_ray.planning.serving import NodeType, ServingLoad, plan_serving, wait_s
from recsys_ray.planning.speeds import Curve, Goal, Hnsw, Ivf, Need, Speeds


def line(nanoseconds):
    return Curve((0, 1_000_000), (0.0, nanoseconds * 1e-3))


SPEEDS = Speeds(
    dim=128,
    goal=Goal(100, 0.99),
    exact=line(60),
    flat=line(50),
    fp16=line(35),
    sq8=line(30),
    pq=line(3),
    finish_s=1e-4,
    read=Curve((0,), (2e-7,)),
    ivf=Ivf(1e-6, 1.0),
    hnsw=Hnsw(12_000, 11.0, 1.5e-7),
    needs={
        "IVF,SQ": Need(24_000, 64, 0.3),
        "IVF,Flat": Need(24_000, 64, 0.3),
        "HNSW": Need(12_000, 128, 0.2),
        "PQxfs,RFlat": Need(24_000, 2, 0.1),
    },
    jitter=1.2,
)
SMALL = ServingLoad(items=10_000, qps=50, p95_ms=30)


def test_a_small_catalogue_takes_two_small_nodes_and_no_shards():
    best = plan_serving(SMALL, SPEEDS)[0]
    assert (best.shards, best.replicas, best.gateways) == (1, 2, 0)
    assert best.node == "4 cores 16 GB"
    assert best.p95_ms <= 30


def test_a_billion_is_sharded_within_every_nodes_memory():
    load = ServingLoad(items=10**9, qps=1000, p95_ms=60)
    for plan in plan_serving(load, SPEEDS):
        node = load.nodes[plan.node]
        assert plan.shards > 1
        used = plan.shared_bytes + plan.processes * (plan.private_bytes + load.process_gb * 1e9)
        assert used <= node.memory_gb * 1e9 * load.memory_share
        assert plan.p95_ms <= load.p95_ms
        assert plan.utilisation < 1


def test_plans_are_sorted_by_cost_one_an_index():
    plans = plan_serving(override(SMALL, {"items": 2_000_000}), SPEEDS)
    assert [plan.cost for plan in plans] == sorted(plan.cost for plan in plans)
    assert len({plan.factory for plan in plans}) == len(plans)


def test_price_decides_between_nodes():
    nodes = {"dear": NodeType(memory_gb=16, cores=4, price=5), "cheap": NodeType(memory_gb=64, cores=16, price=1)}
    assert plan_serving(override(SMALL, {"nodes": nodes}), SPEEDS)[0].node == "cheap"


def test_what_no_machine_can_do_is_refused_with_a_way_out():
    with pytest.raises(ConfigError, match=r"--p95-ms: got 1.0; .*other_ms = 3"):
        plan_serving(override(SMALL, {"p95_ms": 1}), SPEEDS)


def test_filters_that_many_requests_carry_count_in_the_tail():
    wide = {"items": 1_000_000, "filter_leaves": 0.2}
    (without,) = (p for p in plan_serving(override(SMALL, wide), SPEEDS) if p.factory.startswith("HNSW"))
    filtered = {**wide, "filter_share": 0.5, "p95_ms": 200}
    (with_filters,) = (p for p in plan_serving(override(SMALL, filtered), SPEEDS) if p.factory.startswith("HNSW"))
    assert with_filters.p95_ms > without.p95_ms


@given(st.integers(1, 60), st.floats(0.05, 0.95))
def test_more_processes_never_wait_longer(processes, share):
    load = share * processes
    assert wait_s(processes + 1, load, 1.0, 0.95) <= wait_s(processes, load, 1.0, 0.95)


def test_waiting_is_that_of_a_queue_played_through():
    rng, processes, service_s, rate = np.random.default_rng(0), 4, 0.01, 320.0
    free, waited, now = [0.0] * processes, [], 0.0
    for gap, service in zip(rng.exponential(1 / rate, 60_000), rng.exponential(service_s, 60_000), strict=True):
        now += gap
        start = max(now, heapq.heappop(free))
        waited.append(start - now)
        heapq.heappush(free, start + service)
    assert wait_s(processes, rate * service_s, service_s, 0.95) == pytest.approx(np.quantile(waited, 0.95), rel=0.15)


def test_too_much_work_waits_for_ever():
    assert wait_s(2, 2.0, 1.0, 0.95) == float("inf")
