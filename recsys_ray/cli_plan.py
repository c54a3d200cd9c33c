"""`recsys-ray plan`: what a run will need, before it runs, and `plan serving`: what serving a load will need."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from recsys_ray.core.errors import ConfigError

if TYPE_CHECKING:
    from recsys_ray.config import RunConfig
    from recsys_ray.planning.memory import Room, Sizes

app = typer.Typer(invoke_without_command=True)
_WIDE = 180

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.callback()
def plan(  # noqa: PLR0913 (options of one command)
    context: typer.Context,
    preset: Annotated[str, typer.Option(help="A named run: see `recsys-ray presets`.")] = "cpu",
    config: Annotated[Path | None, typer.Option("--config", help="A YAML file of settings.")] = None,
    sets: Annotated[list[str] | None, typer.Option("--set", help="dotted.path=value; repeat it.")] = None,
    items: Annotated[int | None, typer.Option(min=1, help="With --users and --events, instead of the data.")] = None,
    users: Annotated[int | None, typer.Option(min=1)] = None,
    events: Annotated[int | None, typer.Option(min=1)] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0.1, help="For a process; by default this machine's, shared by the workers.")
    ] = None,
    gpu_memory_gb: Annotated[float | None, typer.Option(min=0.1, help="Of a GPU; by default this machine's.")] = None,
    as_json: Json = False,
) -> None:
    """Bytes that each process of each stage will need, whether they fit, and what to change where not.

    Without --items, --users and --events the data is prepared first, as `recsys-ray prepare` does; a run reuses it.
    """
    if context.invoked_subcommand is not None:
        return
    from recsys_ray.planning.remedies import remedies
    from recsys_ray.planning.show import as_json as to_json
    from recsys_ray.planning.show import key, print_plan
    from recsys_ray.planning.stage_memory import plan_memory
    from recsys_ray.presets import load_preset

    run = load_preset(preset, config, sets or [])
    sizes = _sizes(run, items, users, events)
    room = _room(run, memory_gb, gpu_memory_gb)
    needs = plan_memory(run, sizes)
    advice = {key(need): remedies(run, sizes, need, room) for need in needs if room.fits(need) is False}
    if as_json:
        typer.echo(json.dumps(to_json(needs, room, sizes, advice), indent=1))
    else:
        print_plan(needs, room, sizes, advice, Console(width=_WIDE, highlight=False, soft_wrap=True))
    raise typer.Exit(int(bool(advice)))


@app.command()
def serving(  # noqa: PLR0913 (options of one command)
    items: Annotated[int, typer.Option(min=1, help="Vectors.")],
    dim: Annotated[int, typer.Option(min=2, help="Their length.")] = 128,
    qps: Annotated[float, typer.Option(help="Requests a second at the peak.")] = 100,
    p95_ms: Annotated[float, typer.Option(help="The 95th percentile that an answer may take.")] = 50,
    recall: Annotated[float, typer.Option(help="recall@k of the index.")] = 0.99,
    filter_share: Annotated[float, typer.Option(help="Share of the requests that carry a filter.")] = 0.0,
    filter_leaves: Annotated[float, typer.Option(help="Share of the items that such a filter leaves.")] = 0.01,
    node_memory_gb: Annotated[float | None, typer.Option(help="With --node-cores: the type of machine.")] = None,
    node_cores: Annotated[int | None, typer.Option()] = None,
    node_price: Annotated[float | None, typer.Option(help="Of such a machine, an hour, in any currency.")] = None,
    config: Annotated[Path | None, typer.Option("--config", help="YAML of `ServingLoad`: nodes, other_ms …")] = None,
    as_json: Json = False,
) -> None:
    """Index, shards, replicas, memory and cost that hold a load; this machine's speed is measured first, in seconds."""
    from dataclasses import asdict

    from recsys_ray.core.progress import say
    from recsys_ray.planning.calibration import calibrate
    from recsys_ray.planning.serving import ServingLoad, plan_serving
    from recsys_ray.planning.show import print_serving

    values = _read(config) | {
        "items": items,
        "dim": dim,
        "qps": qps,
        "p95_ms": p95_ms,
        "recall": recall,
        "filter_share": filter_share,
        "filter_leaves": filter_leaves,
        **_nodes(node_memory_gb, node_cores, node_price),
    }
    load = ServingLoad.parse(values)
    say("measuring how fast one core of this machine searches")
    plans = plan_serving(load, calibrate(load.dim, load.k, load.recall))
    if as_json:
        typer.echo(json.dumps([{**asdict(one), "nodes": one.nodes} for one in plans], indent=1))
    else:
        print_serving(plans, load, Console(width=_WIDE, highlight=False, soft_wrap=True))


def _sizes(config: "RunConfig", items: int | None, users: int | None, events: int | None) -> "Sizes":
    from recsys_ray.planning.memory import Sizes

    given = {"--items": items, "--users": users, "--events": events}
    if items is not None and users is not None and events is not None:
        return Sizes(items, users, events)
    if any(value is not None for value in given.values()):
        came = [name for name, value in given.items() if value is not None]
        raise ConfigError("plan", came, "all of --items, --users and --events, or none of them for those of the data")
    from recsys_ray.pipeline import run

    dataset = run(config, until="prepare").load_dataset()
    fields = dataset.fields
    return Sizes(
        len(dataset.item_ids),
        len(dataset.user_ids),
        len(dataset.events),
        fields.num_tokens,
        fields.num_user_tokens,
        len(fields.numeric),
        tuple(fields.vectors.items()),
    )


def _room(config: "RunConfig", memory_gb: float | None, gpu_memory_gb: float | None) -> "Room":
    import torch

    from recsys_ray.core.doctor import free_memory
    from recsys_ray.planning.memory import Room

    if memory_gb is None:
        free = free_memory()
        if free is None:
            raise ConfigError("--memory-gb", None, "a number: this system does not tell how much memory is free")
        memory_gb = free / 1e9 / max(config.training.workers, 1)
    if gpu_memory_gb is None and torch.cuda.is_available():
        gpu_memory_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    return Room(memory_gb * 1e9, None if gpu_memory_gb is None else gpu_memory_gb * 1e9)


def _nodes(memory_gb: float | None, cores: int | None, price: float | None) -> dict[str, Any]:
    if memory_gb is None and cores is None and price is None:
        return {}
    if memory_gb is None or cores is None:
        raise ConfigError("plan serving", "a part of a node", "--node-memory-gb and --node-cores together")
    return {"nodes": {f"{cores} cores {memory_gb:g} GB": {"memory_gb": memory_gb, "cores": cores, "price": price}}}


def _read(path: Path | None) -> dict[str, Any]:
    import yaml

    if path is None:
        return {}
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError("--config", str(path), "a readable YAML file", str(error)) from None
    if not isinstance(values, dict):
        raise ConfigError("--config", str(path), "a YAML mapping of the settings of ServingLoad")
    return values
