"""Arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer


def _local(text: str) -> Path:
    """A path of this machine; what a URI names is fetched first."""
    from recsys_ray.retrieval.remote import fetch, is_uri

    return fetch(text) if is_uri(text) else Path(text)


ReleasePath = Annotated[
    Path,
    typer.Argument(
        parser=_local, metavar="RELEASE", help="A release folder, the --storage folder of a run, or a URI: s3://…"
    ),
]
