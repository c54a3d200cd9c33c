"""A nearest channel in shards: each holds its own rows alone, and the merged lists are those of one index over all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.artifacts import Artifact
from recsys_ray.index.live import merged
from recsys_ray.index.shard import Shard
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.channel import Reads
from recsys_ray.retrieval.channels import nearest
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release, assemble
from recsys_ray.retrieval.release_files import channel_names, is_nearest, load_unindexed, nearest_folder, open_release
from recsys_ray.retrieval.text_backends import TextEncoderConfig


@dataclass(frozen=True, eq=False)
class ShardChannel:
    """One shard of a channel: asked, and answering, in rows of the whole catalogue.

    Attributes:
        base: Over the shard's rows, by their places in it.
        shard: Which rows those are.
        num_rows: N, how many rows were published.
    """

    base: NearestChannel
    shard: Shard
    num_rows: int

    @property
    def name(self) -> str:
        """See `Channel`; that of the whole channel."""
        return self.base.name

    @property
    def space_id(self) -> str:
        """The space that its vectors live in."""
        return self.base.space_id

    @property
    def dim(self) -> int:
        """Their length D."""
        return self.base.dim

    @property
    def num_changed(self) -> int:
        """See `NearestChannel.num_changed`."""
        return self.base.num_changed

    @property
    def reads(self) -> Reads:
        """See `Channel`."""
        return self.base.reads

    def scores(self, queries: Queries) -> FloatArray:
        """See `Channel.scores`; (B, n) up to the last row that the shard knows, minus infinity at those of others."""
        found = self.base.scores(self._placed(queries))
        rows = self.shard.rows(np.arange(found.shape[1]), self.num_rows)
        scores = np.full((len(found), max(self.num_rows, rows.max(initial=-1) + 1)), -np.inf, np.float32)
        scores[:, rows] = found
        return scores

    def retrieve(self, queries: Queries, k: int) -> Candidates:
        """See `Channel.retrieve`."""
        found = self.base.retrieve(self._placed(queries), k)
        return Candidates(self.shard.rows(found.rows, self.num_rows), found.scores)

    def put(self, rows: IntArray, vectors: FloatArray, removed: IntArray) -> "ShardChannel":
        """See `NearestChannel.put`; what belongs to other shards changes nothing."""
        places, gone = self.shard.places(rows, self.num_rows), self.shard.places(removed, self.num_rows)
        mine = places >= 0
        return replace(self, base=self.base.put(places[mine], vectors[mine], gone[gone >= 0]))

    def compacted(self) -> "ShardChannel":
        """See `NearestChannel.compacted`."""
        return replace(self, base=self.base.compacted())

    def _placed(self, queries: Queries) -> Queries:
        """The questions in places of this shard; a nearest channel reads no histories."""
        places = Ragged(self.shard.places(queries.exclude.values, self.num_rows), queries.exclude.offsets)
        allowed = queries.allowed
        if allowed is not None:
            subsets = tuple(Subset(self.shard.mask(one.mask, self.num_rows)) for one in allowed.subsets)
            allowed = Allowed(subsets, allowed.choice)
        exclude = places.where(places.values >= 0)
        return replace(queries, history=Ragged.empty(len(queries)), exclude=exclude, allowed=allowed)


def load_shard(artifact: Artifact, name: str, shard: Shard) -> ShardChannel:
    """One shard of a nearest channel of an opened release; of the vectors its rows alone are read.

    Raises:
        ArtifactError: When the channel has no index, or it cannot be read.
    """
    directory = nearest_folder(artifact, name)
    return ShardChannel(nearest.load_rows(directory, shard), shard, nearest.num_rows(directory))


def load_shard_release(path: str | Path, name: str, shard: Shard, text_encoder: TextEncoderConfig) -> Release:
    """A release that answers by one shard of one nearest channel; it reads the item log as the whole release does.

    Raises:
        ArtifactError, ConfigError, SpaceError: As `load_release`; also when the channel has no index.
    """
    artifact = open_release(path)
    spaces = {one: load_unindexed(artifact, one) for one in channel_names(artifact) if is_nearest(artifact, one)}
    release = assemble(artifact, spaces, text_encoder)
    retriever = replace(release.retriever, channels={name: load_shard(artifact, name, shard)})
    return replace(release, retriever=retriever)


def merge_shards(lists: Sequence[Candidates], k: int) -> Candidates:
    """The k best of the lists of all shards; equal scores by rising row."""
    return Candidates(*merged([(one.rows, one.scores) for one in lists], k))
