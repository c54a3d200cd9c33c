"""Plans as tables for people, a plan of memory also as JSON values."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from recsys_ray.planning.memory import Need, Room, Sizes
from recsys_ray.planning.remedies import Remedy
from recsys_ray.planning.serving import ServingLoad, ServingPlan

Advice = dict[tuple[str, str, str], list[Remedy]]
_MARKS = {True: "[green]fits[/]", False: "[bold red]too much[/]", None: "?"}


def print_plan(needs: list[Need], room: Room, sizes: Sizes, advice: Advice, out: Console) -> None:
    """Each process with its arithmetic, then what to change."""
    out.print(f"{sizes.items:,} items, {sizes.users:,} users, {sizes.events:,} events")
    gpu = "not known" if room.gpu_bytes is None else human(room.gpu_bytes)
    out.print(f"room for a process: {human(room.host_bytes)} of memory, GPU {gpu}\n")
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "process", "memory", "bytes", "", "arithmetic"):
        table.add_column(name, justify="right" if name == "bytes" else "left", overflow="fold")
    for need in needs:
        total = human(need.num_bytes)
        table.add_row(f"[bold]{need.stage}", need.process, need.kind, f"[bold]{total}", _MARKS[room.fits(need)], "")
        for line in need.lines:
            table.add_row("", "", f"  {line.what}", human(line.num_bytes), "", line.formula)
    out.print(table)
    for need in needs:
        found = advice.get(key(need))
        if found is not None:
            out.print(
                f"\n{need.stage}, {need.process}, {need.kind}: {human(need.num_bytes)} are too much. It would take"
            )
            for remedy in found:
                out.print(f"  {human(remedy.num_bytes):>10}  {_MARKS[remedy.fits]}  {remedy}")
            if not any(remedy.fits for remedy in found):
                out.print("  no single setting is enough: combine them, or take larger machines")


def as_json(needs: list[Need], room: Room, sizes: Sizes, advice: Advice) -> dict[str, Any]:
    """The same as JSON values, bytes unrounded."""
    return {
        "sizes": asdict(sizes),
        "room": asdict(room),
        "needs": [
            {
                **asdict(need),
                "num_bytes": need.num_bytes,
                "fits": room.fits(need),
                "remedies": [asdict(remedy) for remedy in advice.get(key(need), [])],
            }
            for need in needs
        ],
    }


def key(need: Need) -> tuple[str, str, str]:
    """What names a process in a plan."""
    return need.stage, need.process, need.kind


def human(num_bytes: float) -> str:
    """Bytes with a unit."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.3g} TB" if num_bytes < 1000 else f"{num_bytes:,.0f} TB"


def print_serving(plans: list[ServingPlan], load: ServingLoad, out: Console) -> None:
    """The plans as a table, and the arithmetic of the cheapest."""
    out.print(f"{load.items:,} vectors of {load.dim}, {load.qps:g} requests/s, p95 {load.p95_ms:g} ms")
    table = Table(box=None, pad_edge=False)
    heads = ["index", "setting", "shards", "x replicas", "+ gateways", "nodes of", "GB a node"]
    for name in [*heads, "search", "p95", "busy", "cost"]:
        table.add_column(name, justify="left" if name in ("index", "nodes of") else "right")
    for plan in plans:
        used = plan.shared_bytes + plan.processes * (plan.private_bytes + load.process_gb * 1e9) + load.shared_gb * 1e9
        table.add_row(
            plan.factory,
            f"{plan.setting:g}" if plan.setting != 1 else "",
            str(plan.shards),
            str(plan.replicas),
            str(plan.gateways),
            plan.node,
            f"{used / 1e9:.1f}",
            f"{plan.search_ms:.2f} ms",
            f"{plan.p95_ms:.1f} ms",
            f"{plan.utilisation:.0%}",
            f"{plan.cost:g}",
        )
    out.print(table)
    unit = "an hour" if all(node.price is not None for node in load.nodes.values()) else "in cores, or 4 GB each"
    out.print(f"cost: {unit}\n\nthe cheapest, {plans[0].factory}:")
    for line in plans[0].arithmetic:
        out.print(f"  {line}")
