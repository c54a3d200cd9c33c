"""The channels. One file each; adding one is a file and a line in each of the three tables below."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import co_visitation, content, nearest, popularity
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig

ChannelConfig = Annotated[
    CoVisitationConfig | ContentConfig | NearestConfig | PopularityConfig, Field(discriminator="kind")
]

_FIT: dict[str, Callable[[str, Any, FitData], Channel]] = {
    "co_visitation": co_visitation.fit,
    "content": content.fit,
    "nearest": nearest.fit,
    "popularity": popularity.fit,
}
_LOAD: dict[str, Callable[[Path], Channel]] = {
    "co_visitation": co_visitation.load,
    "content": content.load,
    "nearest": nearest.load,
    "popularity": popularity.load,
}


def fit_channel(name: str, config: ChannelConfig, data: FitData) -> Channel:
    """Fit one channel under a name of the user's choice.

    Raises:
        ConfigError: When the data lacks what the channel's settings ask for.
    """
    return _FIT[config.kind](name, config, data)


def load_channel(directory: Path) -> Channel:
    """Read any channel that `Channel.save` wrote.

    Raises:
        ArtifactError: When the directory holds no channel that this version knows.
    """
    kind = read_header(directory).kind
    if kind not in _LOAD:
        raise ArtifactError(f"{directory} holds a {kind!r} channel; this version knows {', '.join(_LOAD)}")
    return _LOAD[kind](directory)
