"""`recsys-ray recommend`: ask a release without a server, one question or the same one for many users."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys_ray.cli_arguments import ReleasePath
from recsys_ray.core.errors import ConfigError

if TYPE_CHECKING:
    from recsys_ray.retrieval.filters import Filter
    from serve_app.api import SeenEvents

_MANY = "with --all-users or --users"


def recommend(  # noqa: PLR0913 (options of one command)
    release: ReleasePath,
    history: Annotated[str, typer.Option(help="Item ids, oldest first, separated by commas.")] = "",
    user: Annotated[str, typer.Option(help="A user id of the event log.")] = "",
    text: Annotated[str, typer.Option(help="Free text to search for.")] = "",
    all_users: Annotated[bool, typer.Option("--all-users", help="Every user of the release; needs --to.")] = False,
    users: Annotated[Path | None, typer.Option(help="The users of a text file, one id a line; needs --to.")] = None,
    to: Annotated[
        Path | None, typer.Option(help=f"{_MANY.capitalize()}: folder for Parquet files; the same again goes on.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many candidates.")] = 10,
    filters: Annotated[str, typer.Option(help="What may come back, as JSON: see docs/filters.md.")] = "",
    exclude_seen: Annotated[
        str, typer.Option(help='true, false, or which of a user\'s events: {"within_days": 30, "kinds": ["purchase"]}.')
    ] = "true",
    ray: Annotated[
        bool | None, typer.Option("--ray/--no-ray", help=f"{_MANY.capitalize()}: by Ray; default: for many users.")
    ] = None,
    users_per_file: Annotated[int, typer.Option(min=1, help=f"{_MANY.capitalize()}: users of a file.")] = 10_000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Ask a release without a server: give one of --history, --user, --text, --all-users and --users."""
    given = {"--history": history, "--user": user, "--text": text, "--all-users": all_users, "--users": users}
    names = [name for name, value in given.items() if value]
    if len(names) != 1:
        raise ConfigError("recommend", names or "no question", f"exactly one of {', '.join(given)}")
    wanted, seen = _filter(filters), _seen(exclude_seen)
    if not (all_users or users):
        _refuse({"--to": to, "--ray": ray})
        _print_items(_ask(release, history, user, text, k, wanted, seen), as_json)
        return
    if to is None or as_json:
        raise ConfigError("recommend", names[0] + (" --json" if as_json else ""), f"{names[0]} --to FOLDER")
    from recsys_ray.retrieval.bulk.run import Bulk, recommend_users

    within_days, kinds = (None, None) if isinstance(seen, bool) else (seen.within_days, seen.kinds)
    bulk = Bulk(
        release,
        to,
        users,
        k,
        exclude_seen=seen is not False,
        within_days=within_days,
        kinds=None if kinds is None else tuple(kinds),
        filters=wanted,
        users_per_file=users_per_file,
    )
    typer.echo(f"{recommend_users(bulk, ray):,} users in {to}")


def _ask(
    release: Path, history: str, user: str, text: str, k: int, filters: "Filter | None", seen: "bool | SeenEvents"
) -> list[Any]:
    from recsys_ray.retrieval.release import load_release, resolve_release

    loaded = load_release(resolve_release(release))
    if text:
        if seen is not True:
            raise ConfigError("--exclude-seen", "with --text", "it with --history or --user")
        return loaded.search(text, k, filters=filters)
    ids = [part.strip() for part in history.split(",") if part.strip()]
    left_out = seen if isinstance(seen, bool) else seen.plain()
    return loaded.recommend(ids or None, user or None, k=k, exclude_seen=left_out, filters=filters)


def _filter(text: str) -> "Filter | None":
    """A filter from its JSON.

    Raises:
        ConfigError: When it is none.
    """
    if not text:
        return None
    from serve_app.filters import parse_filter

    return parse_filter("--filters", text)


def _seen(text: str) -> "bool | SeenEvents":
    """What is left out.

    Raises:
        ConfigError: When it is neither true, false nor a condition.
    """
    if text in ("true", "false"):
        return text == "true"
    from pydantic import ValidationError

    from serve_app.api import SeenEvents

    try:
        return SeenEvents.model_validate_json(text)
    except ValidationError as error:
        allowed = 'true, false, or e.g. {"within_days": 30, "kinds": ["purchase"]}'
        raise ConfigError("--exclude-seen", text, allowed, error.errors()[0]["msg"]) from None


def _refuse(options: dict[str, object]) -> None:
    for name, value in options.items():
        if value is not None:
            raise ConfigError(name, str(value), f"it {_MANY} alone")


def _print_items(items: list[Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps([vars(item) for item in items], indent=1, default=str))
        return
    for place, item in enumerate(items, 1):
        typer.echo(f"{place:3}. {item.title or item.item_id}  [{item.item_id}]  from {', '.join(item.channels)}")
