"""`recsys-ray releases`: which there are, which one is served, and moving between them."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from recsys_ray.cli_arguments import ReleasePath

if TYPE_CHECKING:
    from recsys_ray.retrieval.release_diff import Pair, ReleaseDiff
    from recsys_ray.retrieval.releases import ReleaseInfo

app = typer.Typer(no_args_is_help=True)
_WIDE = 180
_SHOWN = ("recall@10", "ndcg@10", "recall@100")

Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The --storage folder of a run, or a folder of releases.")
]
Id = Annotated[str, typer.Argument(metavar="ID", help="A release of the folder, see `releases list`.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


@app.callback()
def releases() -> None:
    """List, verify, activate, roll back, compare, remove, and copy releases."""


@app.command(name="list")
def list_releases(folder: Folder, as_json: Json = False) -> None:
    """The releases of a folder, newest first."""
    from recsys_ray.retrieval.releases import Releases

    found = Releases(folder).list()
    if as_json:
        _print_json([asdict(one) for one in found])
    else:
        _console().print(_listed(found))


@app.command()
def verify(release: ReleasePath, as_json: Json = False) -> None:
    """Hash every file, load the release in a process of its own, and ask its canary; exit code 2 where it fails."""
    from recsys_ray.retrieval.release_check import check_release

    checked = check_release(release)
    size = decimal(checked.num_bytes)
    _tell(asdict(checked), f"{checked.id}: {checked.files} files, {size}, {checked.items} items: all is well", as_json)


@app.command()
def activate(folder: Folder, release_id: Id, as_json: Json = False) -> None:
    """Make a release the one that is served, if it passes `releases verify`."""
    from recsys_ray.retrieval.releases import Releases

    Releases(folder).activate(release_id)
    _tell({"active": release_id}, f"active: {release_id}", as_json)


@app.command()
def rollback(folder: Folder, as_json: Json = False) -> None:
    """Make the release that was active before this one active again, if it passes `releases verify`."""
    from recsys_ray.retrieval.releases import Releases

    active = Releases(folder).roll_back()
    _tell({"active": active}, f"active: {active}", as_json)


@app.command()
def diff(
    folder: Folder,
    a: Annotated[str, typer.Argument(metavar="FROM", help="A release of the folder.")],
    b: Annotated[str, typer.Argument(metavar="TO", help="Another one.")],
    as_json: Json = False,
) -> None:
    """What changes from one release to another: settings, channels, weights, items, users, measured metrics, bytes."""
    from recsys_ray.retrieval.releases import Releases

    found = Releases(folder).diff(a, b)
    if as_json:
        _print_json(asdict(found))
    else:
        _console().print(_compared(found))


@app.command()
def prune(
    folder: Folder,
    keep: Annotated[int, typer.Option(min=1, help="The newest so many stay.")],
    as_json: Json = False,
) -> None:
    """Remove old releases; never the active one, the one to roll back to, or the one a run's storage points to."""
    from recsys_ray.retrieval.releases import Releases

    pruned = Releases(folder).prune(keep)
    names = ", ".join(pruned.ids) or "none"
    shared = pruned.num_bytes - pruned.bytes_freed
    text = f"removed: {names}; {decimal(pruned.bytes_freed)} freed"
    _tell(asdict(pruned), f"{text}, {decimal(shared)} shared with what stays" if shared else text, as_json)


@app.command()
def push(
    release: ReleasePath,
    uri: Annotated[str, typer.Argument(metavar="URI", help="The folder to hold it: s3://bucket/releases, …")],
    as_json: Json = False,
) -> None:
    """Copy a release to other storage; the same command again goes on with a copy that was cut."""
    from recsys_ray.retrieval.release_files import resolve_release
    from recsys_ray.retrieval.remote import push as push_release

    there = push_release(resolve_release(release), uri)
    _tell({"uri": there}, there, as_json)


@app.command()
def pull(
    uri: Annotated[str, typer.Argument(metavar="URI", help="A release there, or a folder: then its newest release.")],
    to: Annotated[Path, typer.Option(help="The folder of releases that it shall lie in.")],
    as_json: Json = False,
) -> None:
    """Bring a release from other storage; the same command again goes on with a copy that was cut."""
    from recsys_ray.retrieval.release_files import releases_folder
    from recsys_ray.retrieval.remote import pull as pull_release

    path = pull_release(uri, releases_folder(to))
    _tell({"path": str(path)}, str(path), as_json)


def _listed(found: list["ReleaseInfo"]) -> Table:
    table = Table("", "id", "published (UTC)", "items", "fitted on", *_SHOWN, "size")
    for one in found:
        measured = [_number(one.measured.get(name)) for name in _SHOWN]
        size = decimal(one.num_bytes)
        created = one.created_at.removesuffix("+00:00").replace("T", " ")
        values = (created, f"{one.items:,}", one.fitted_on, *measured, size)
        table.add_row("active" if one.active else "", one.id, *(values if one.problem is None else (one.problem,)))
    return table


def _compared(found: "ReleaseDiff") -> Table:
    table = Table("", found.a, found.b)
    for name, (before, after) in {"channels": found.channels, "spaces": found.spaces}.items():
        table.add_row(name, ", ".join(before), ", ".join(after))
    for kind, counts in {"items": found.items, "users": found.users}.items():
        words = f"{counts.new:,} new, {counts.gone:,} gone"
        table.add_row(kind, "", words if kind == "users" else f"{words}, {counts.changed:,} changed")
    table.add_row("size", *(decimal(size) for size in found.num_bytes))
    for title, pairs in {"measured": found.measured, "weight": found.weights, "setting": found.settings}.items():
        _add_pairs(table, title, pairs)
    return table


def _add_pairs(table: Table, title: str, pairs: dict[str, "Pair"]) -> None:
    for name, pair in pairs.items():
        table.add_row(f"{title} {name}", *(_number(value) for value in pair))


def _number(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _tell(values: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        _print_json(values)
    else:
        typer.echo(text)


def _print_json(values: Any) -> None:
    typer.echo(json.dumps(values, indent=1, default=str))


def _console() -> Console:
    return Console(width=_WIDE, highlight=False, soft_wrap=True, markup=False)
