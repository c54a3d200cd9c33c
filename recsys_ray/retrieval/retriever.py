"""The retriever: encoders, channels and fusion joined; the same online and offline."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.config import override
from recsys_ray.core.errors import ConfigError, SpaceError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Source
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.fusion import Fused, Fusion, combine
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.query_encoder import QueryEncoder, TowerQueryEncoder

_TOWERS_SHARE = 0.25


@dataclass(frozen=True)
class Retriever:
    """From questions to candidates.

    Attributes:
        channels: Name to channel.
        encoders: They fill in the query vectors that channels read.
        fusion: How the channels' lists are merged; it has a weight for each of them.

    Raises:
        ConfigError: When the fusion has no weight for a channel.
        SpaceError: When a channel searches a space that no encoder answers in.
    """

    channels: Mapping[str, Source]
    encoders: tuple[QueryEncoder, ...]
    fusion: Fusion
    _untuned: dict[tuple[str, ...], Fusion] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        missing = set(self.channels) - set(self.fusion.weights)
        if missing:
            raise ConfigError("fusion.weights", sorted(self.fusion.weights), f"all channels; missing {sorted(missing)}")
        for channel in self.channels.values():
            if isinstance(channel, NearestChannel):
                self._require_encoder(channel)

    def _require_encoder(self, channel: NearestChannel) -> None:
        encoded = {encoder.space_id for encoder in self.encoders}
        if channel.space_id not in encoded:
            have = ", ".join(sorted(encoded)) or "none"
            raise SpaceError(
                f"channel {channel.name!r} searches space {channel.space_id}; queries are encoded in: {have}"
            )

    def encode(self, queries: Queries) -> Queries:
        """The questions with the vectors of every encoder."""
        vectors: dict[str, FloatArray] = {}
        for encoder in self.encoders:
            vectors |= encoder.encode(queries)
        return queries.with_vectors(vectors)

    def retrieve(self, queries: Queries, depth: int | None = None) -> dict[str, Candidates]:
        """Each channel's own list for encoded questions, `depth` deep (the fusion's depth by default)."""
        return {name: channel.retrieve(queries, depth or self.fusion.depth) for name, channel in self.channels.items()}

    def recommend(self, queries: Queries, k: int) -> Fused:
        """The k best of all channels together; questions need not be encoded yet."""
        return combine(self.retrieve(self.encode(queries), max(k, self.fusion.depth)), self.fusion, k)

    def untuned_fusion(self, names: list[str]) -> Fusion:
        """Reciprocal rank for questions without a history, which no validation speaks for.

        Trained towers place words by what people chose together, which says less of the words than their own meaning:
        where another channel reads them too, the towers count a quarter.
        """
        known = self._untuned.get(tuple(names))
        if known is None:
            known = self._untuned[tuple(names)] = self._equal(names)
        return known

    def _equal(self, names: list[str]) -> Fusion:
        trained = {encoder.space_id for encoder in self.encoders if isinstance(encoder, TowerQueryEncoder)}
        weights = {name: _TOWERS_SHARE if _space(self.channels[name]) in trained else 1.0 for name in names}
        equal = Fusion.equal(names, self.fusion.depth)
        return override(equal, {"weights": weights}) if len(set(weights.values())) > 1 else equal

    def only(self, names: list[str], fusion: Fusion | None = None) -> "Retriever":
        """The same with some of the channels."""
        return Retriever({name: self.channels[name] for name in names}, self.encoders, fusion or self.fusion)


def _space(channel: Source) -> str | None:
    return channel.space_id if isinstance(channel, NearestChannel) else None
