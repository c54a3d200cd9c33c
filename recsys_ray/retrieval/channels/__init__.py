"""The channels. One file each; adding one is a file, a name in `ChannelConfig` and a line in `KINDS`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from recsys_ray.core.errors import ArtifactError
from recsys_ray.retrieval.channel import Channel
from recsys_ray.retrieval.channels import (
    co_visitation,
    content,
    ease,
    folded,
    graph_embedding,
    item_knn,
    matrix_factorisation,
    nearest,
    popularity,
    recent,
    rp3beta,
    trending,
    user_knn,
)
from recsys_ray.retrieval.channels.co_visitation import CoVisitationConfig
from recsys_ray.retrieval.channels.content import ContentConfig
from recsys_ray.retrieval.channels.ease import EaseConfig
from recsys_ray.retrieval.channels.files import read_header
from recsys_ray.retrieval.channels.fit_data import FitData
from recsys_ray.retrieval.channels.graph_settings import GraphEmbeddingConfig
from recsys_ray.retrieval.channels.item_knn import ItemKnnConfig
from recsys_ray.retrieval.channels.item_table import AT_QUERY
from recsys_ray.retrieval.channels.matrix_factorisation import MatrixFactorisationConfig
from recsys_ray.retrieval.channels.nearest import NearestConfig
from recsys_ray.retrieval.channels.popularity import PopularityConfig
from recsys_ray.retrieval.channels.recent import RecentConfig
from recsys_ray.retrieval.channels.rp3beta import Rp3BetaConfig
from recsys_ray.retrieval.channels.trending import TrendingConfig
from recsys_ray.retrieval.channels.user_knn import UserKnnConfig

ChannelConfig = Annotated[
    CoVisitationConfig
    | ContentConfig
    | EaseConfig
    | GraphEmbeddingConfig
    | ItemKnnConfig
    | MatrixFactorisationConfig
    | NearestConfig
    | PopularityConfig
    | RecentConfig
    | Rp3BetaConfig
    | TrendingConfig
    | UserKnnConfig,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class Kind:
    """How one kind of channel is fitted and loaded.

    Attributes:
        fit: (name, settings, data) to a finished channel. Raises `NotApplicable` when the data has nothing for it.
        load: Reads what the channel's `save` wrote.
        cost: About how long a fit takes beside one of popularity's; where several run side by side, the longest begin.
        at_query: Settings that fitting does not read: a fitted channel takes others by `dataclasses.replace(config=…)`.
    """

    fit: Callable[[str, Any, FitData], Channel]
    load: Callable[[Path], Channel]
    at_query: frozenset[str] = frozenset()
    cost: float = 1.0


KINDS: dict[str, Kind] = {
    "co_visitation": Kind(co_visitation.fit, co_visitation.load, AT_QUERY),
    "content": Kind(content.fit, content.load, content.AT_QUERY),
    "ease": Kind(ease.fit, ease.load, AT_QUERY, cost=50.0),
    "graph_embedding": Kind(graph_embedding.fit, graph_embedding.load, folded.AT_QUERY, cost=50.0),
    "item_knn": Kind(item_knn.fit, item_knn.load, AT_QUERY, cost=5.0),
    "matrix_factorisation": Kind(matrix_factorisation.fit, matrix_factorisation.load, folded.AT_QUERY, cost=20.0),
    "nearest": Kind(nearest.fit, nearest.load),
    "popularity": Kind(popularity.fit, popularity.load),
    "recent": Kind(recent.fit, recent.load),
    "rp3beta": Kind(rp3beta.fit, rp3beta.load, AT_QUERY, cost=5.0),
    "trending": Kind(trending.fit, trending.load),
    "user_knn": Kind(user_knn.fit, user_knn.load, user_knn.AT_QUERY, cost=10.0),
}


def fit_channel(name: str, config: ChannelConfig, data: FitData) -> Channel:
    """Fit one channel under a name of the user's choice.

    Raises:
        ConfigError: When the data lacks what the channel's settings ask for.
        NotApplicable: When the data has nothing for a channel of this kind.
    """
    return KINDS[config.kind].fit(name, config, data)


def load_channel(directory: Path) -> Channel:
    """Read any channel that `Channel.save` wrote.

    Raises:
        ArtifactError: When the directory holds no channel that this version knows.
    """
    kind = read_header(directory).kind
    if kind not in KINDS:
        raise ArtifactError(f"{directory} holds a {kind!r} channel; this version knows {', '.join(KINDS)}")
    return KINDS[kind].load(directory)
