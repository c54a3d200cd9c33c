"""Which index, how many shards and replicas, for a load and a latency: the cheapest nodes that hold both.

A search of a shard takes what `Speeds` predicts. P processes a node answer one request each at a time; requests that
find all busy wait, by Erlang's C formula for c processes (Gross and Harris, "Fundamentals of Queueing Theory", 2.3).
An answer over S shards waits for the slowest, so each shard has to keep its 0.95^(1/S) quantile (Dean and Barroso 2013,
"The Tail at Scale"). Vectors are mapped, so a node's processes share them; the index itself each process holds alone.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from recsys_ray.core.config import Config
from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import EXACT
from recsys_ray.index.spec import candidates
from recsys_ray.planning.index_bytes import index_bytes, vectors_bytes
from recsys_ray.planning.speeds import Speeds, family

_QUANTILE = 0.95
_MOST_SHARDS = 4096
_MOST_PROCESSES = 100_000
_GB = 1e9


class NodeType(Config):
    """A machine to rent or to own.

    Attributes:
        memory_gb: Its memory, in 10^9 bytes.
        cores: Its cores; one is left to the system and Ray.
        price: What it costs an hour, in any currency; null where nobody said, and then nodes count by their size.
    """

    memory_gb: float = Field(gt=0)
    cores: int = Field(ge=2)
    price: float | None = Field(None, gt=0)

    @property
    def weight(self) -> float:
        """What it is compared by: its price, or else its cores or 4 GB each, whichever is more."""
        return self.price if self.price is not None else max(float(self.cores), self.memory_gb / 4)


class ServingLoad(Config):
    """What has to be served, and on what.

    Attributes:
        items: N.
        dim: D.
        qps: Requests a second at the peak.
        p95_ms: The 95th percentile that an answer may take, on the server.
        recall: recall@k of the index.
        k: Results of a search.
        filter_share: Share of the requests that carry a filter.
        filter_leaves: Share of the items that such a filter leaves.
        other_ms: What an answer takes beside the search: encoding the query, the other channels, fusion, HTTP.
        hop_ms: What asking another process adds, where there are shards.
        process_gb: What a process holds beside the index: Python, torch, Ray, the query encoder.
        shared_gb: What a node's processes share beside the vectors: mapped channel tables, catalogue fields.
        memory_share: Share of a node's memory that may be filled.
        min_replicas: Replicas of each shard at least, so that losing a node loses no answer.
        nodes: Name to a type of machine; the cheapest that does is taken.
    """

    items: int = Field(ge=1)
    dim: int = Field(128, ge=2)
    qps: float = Field(100, gt=0)
    p95_ms: float = Field(50, gt=0)
    recall: float = Field(0.99, gt=0, lt=1)
    k: int = Field(100, ge=1)
    filter_share: float = Field(0.0, ge=0, le=1)
    filter_leaves: float = Field(0.01, gt=0, le=1)
    other_ms: float = Field(3.0, ge=0)
    hop_ms: float = Field(2.5, ge=0)
    process_gb: float = Field(0.8, ge=0)
    shared_gb: float = Field(0.0, ge=0)
    memory_share: float = Field(0.8, gt=0, le=1)
    min_replicas: int = Field(2, ge=1)
    nodes: dict[str, NodeType] = Field(
        default_factory=lambda: {
            "4 cores 16 GB": NodeType(memory_gb=16, cores=4),
            "8 cores 32 GB": NodeType(memory_gb=32, cores=8),
            "16 cores 64 GB": NodeType(memory_gb=64, cores=16),
            "16 cores 128 GB": NodeType(memory_gb=128, cores=16),
            "64 cores 512 GB": NodeType(memory_gb=512, cores=64),
        },
        min_length=1,
    )


@dataclass(frozen=True)
class ServingPlan:
    """One way to serve the load.

    Attributes:
        factory: The index of each shard.
        setting: Its nprobe, efSearch or k_factor; 1 where there is none.
        node: The type of machine.
        shards: S.
        replicas: Nodes a shard.
        gateways: Nodes beside them that encode, fuse and answer; 0 where the shards' nodes do.
        processes: Processes a node.
        search_ms: Median of one shard's search.
        p95_ms: Predicted, of an answer.
        utilisation: Share of their time that the processes are busy at the peak.
        private_bytes: The index of one shard, in each process.
        shared_bytes: The vectors of one shard, once a node.
        cost: Of all nodes, by `NodeType.weight`.
        arithmetic: Each step in words.
    """

    factory: str
    setting: float
    node: str
    shards: int
    replicas: int
    gateways: int
    processes: int
    search_ms: float
    p95_ms: float
    utilisation: float
    private_bytes: float
    shared_bytes: float
    cost: float
    arithmetic: tuple[str, ...]

    @property
    def nodes(self) -> int:
        """All of them."""
        return self.shards * self.replicas + self.gateways


def plan_serving(load: ServingLoad, speeds: Speeds) -> list[ServingPlan]:
    """The cheapest plan of each index that can hold the load, the cheapest first.

    Raises:
        ConfigError: When no index on any of the nodes can.
    """
    best: dict[str, ServingPlan] = {}
    for plan in _plans(load, speeds):
        name = family(plan.factory)
        if name not in best or (plan.cost, plan.p95_ms) < (best[name].cost, best[name].p95_ms):
            best[name] = plan
    if not best:
        hint = "Allow more milliseconds, less recall or other_ms, or nodes with more memory."
        least = f"more than other_ms = {load.other_ms:g} and a search on the nodes given"
        raise ConfigError("--p95-ms", load.p95_ms, least, hint)
    return sorted(best.values(), key=lambda plan: (plan.cost, plan.p95_ms))


def wait_s(processes: int, load: float, service_s: float, quantile: float) -> float:
    """The quantile of the time a request waits, by Erlang's C formula; infinity where the work is too much.

    Args:
        processes: c.
        load: Offered work in processes, rate times service time.
        service_s: Mean service time.
        quantile: Of the waiting time.
    """
    if load >= processes:
        return math.inf
    blocked = 1.0  # Erlang B by recursion, which neither overflows nor loses digits
    for servers in range(1, processes + 1):
        blocked = load * blocked / (servers + load * blocked)
    waits = blocked / (1 - load / processes * (1 - blocked))
    missed = 1 - quantile
    return 0.0 if waits <= missed else service_s / (processes - load) * math.log(waits / missed)


def _plans(load: ServingLoad, speeds: Speeds) -> Iterator[ServingPlan]:
    shards = 1
    while shards <= min(_MOST_SHARDS, load.items):
        part = -(-load.items // shards)
        for factory in (EXACT, *(name for name, _ in candidates(part, load.dim, load.k))):
            setting = speeds.setting(factory, part)
            if not math.isinf(setting):
                for name in load.nodes:
                    plan = _plan(load, speeds, (factory, setting), name, shards)
                    if plan is not None:
                        yield plan
        shards *= 2


def _plan(
    load: ServingLoad, speeds: Speeds, index: tuple[str, float], node_name: str, shards: int
) -> ServingPlan | None:
    """One index on one type of node over so many shards; None where memory or time do not do."""
    factory, setting = index
    node, part = load.nodes[node_name], -(-load.items // shards)
    shared, private = vectors_bytes(part, load.dim), index_bytes(factory, part, load.dim)
    room = node.memory_gb * _GB * load.memory_share - shared - load.shared_gb * _GB
    processes = min(node.cores - 1, math.floor(room / (private + load.process_gb * _GB)))
    if processes < 1:
        return None
    search_s = speeds.seconds(factory, setting, part)
    filtered_s = speeds.filtered_seconds(part, load.filter_leaves)
    slow_s = max(search_s, filtered_s) if load.filter_share > 1 - _QUANTILE else search_s
    mean_s = (1 - load.filter_share) * search_s + load.filter_share * filtered_s
    other_s, beside_s = load.other_ms / 1e3, 0.0
    if shards == 1:
        mean_s, slow_s = mean_s + other_s, slow_s + other_s
    else:
        beside_s = (load.hop_ms + load.other_ms) / 1e3
    quantile = _QUANTILE ** (1 / shards)
    budget_s = load.p95_ms / 1e3 - beside_s - slow_s * speeds.jitter
    needed = _processes(load.qps, mean_s, quantile, budget_s)
    if needed is None:
        return None
    replicas = max(load.min_replicas, -(-needed // processes))
    offered = load.qps * mean_s
    wait = wait_s(replicas * processes, offered, mean_s, quantile)
    gateways = 0 if shards == 1 else max(load.min_replicas, math.ceil(load.qps * other_s / 0.7 / (node.cores - 1)))
    nodes = shards * replicas + gateways
    return ServingPlan(
        factory,
        setting,
        node_name,
        shards,
        replicas,
        gateways,
        processes,
        1e3 * search_s,
        1e3 * (slow_s * speeds.jitter + wait + beside_s),
        offered / (replicas * processes),
        private,
        shared,
        nodes * node.weight,
        (
            f"{load.items:,} items / {shards} shards = {part:,}; vectors {shared / _GB:.3g} GB a node, "
            f"index {private / _GB:.3g} GB a process",
            f"({node.memory_gb:g} GB x {load.memory_share:g} - {shared / _GB:.3g} - {load.shared_gb:g}) / "
            f"({private / _GB:.3g} + {load.process_gb:g}) GB, at most {node.cores - 1} cores: "
            f"{processes} processes a node",
            f"{load.qps:g}/s x {1e3 * mean_s:.3g} ms = {offered:.3g} busy; {replicas * processes} processes a shard "
            f"keep waiting below {1e3 * wait:.3g} ms for {quantile:.4%} of requests",
            f"p95 = {1e3 * slow_s:.3g} ms x {speeds.jitter:.2f} (slow ones, measured) + {1e3 * wait:.3g} waiting + "
            f"{1e3 * beside_s:.3g} beside",
            f"{shards} shards x {replicas} replicas + {gateways} gateways = {nodes} nodes of {node_name}",
        ),
    )


def _processes(qps: float, mean_s: float, quantile: float, budget_s: float) -> int | None:
    """The fewest processes whose waiting stays within the budget."""
    if budget_s < 0 or qps * mean_s > _MOST_PROCESSES:
        return None
    least = low = math.floor(qps * mean_s) + 1
    high = 2 * least + 8
    while low < high:
        middle = (low + high) // 2
        if wait_s(middle, qps * mean_s, mean_s, quantile) <= budget_s:
            high = middle
        else:
            low = middle + 1
    return low
