"""`channel.json`: what each channel's directory says of itself."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recsys_ray.core.config import Config
from recsys_ray.core.errors import ArtifactError

CHANNEL_FILE = "channel.json"


@dataclass(frozen=True)
class Header:
    """The content of `channel.json`.

    Attributes:
        kind: Which channel it is, see `ChannelConfig`.
        name: Its name in this run.
        config: Its settings as plain values.
        facts: What was found while fitting.
    """

    kind: str
    name: str
    config: dict[str, Any]
    facts: dict[str, Any]


def write_header(directory: Path, name: str, config: Config, facts: dict[str, Any] | None = None) -> None:
    """Write `channel.json`; `config` has a field `kind`."""
    settings = config.model_dump(mode="json")
    values = {"kind": settings["kind"], "name": name, "config": settings, "facts": facts or {}}
    (directory / CHANNEL_FILE).write_text(json.dumps(values, indent=1) + "\n")


def add_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Put what else was found into a `channel.json`."""
    header = read_header(directory)
    values = {**asdict(header), "facts": {**header.facts, **facts}}
    (directory / CHANNEL_FILE).write_text(json.dumps(values, indent=1) + "\n")


def read_header(directory: Path) -> Header:
    """Read `channel.json`.

    Raises:
        ArtifactError: When it is missing or not what `write_header` wrote.
    """
    try:
        return Header(**json.loads((directory / CHANNEL_FILE).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ArtifactError(f"{directory / CHANNEL_FILE} cannot be read: {error}") from None
