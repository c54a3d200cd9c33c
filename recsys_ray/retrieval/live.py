"""A release with changes of its items over it: each batch of changes makes a new value, which is swapped in whole."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.errors import ConfigError, StoreError
from recsys_ray.index.live import LiveIndex, Present
from recsys_ray.online.item_log import ItemChange
from recsys_ray.retrieval.channel import Source
from recsys_ray.retrieval.channels.content import ContentChannel
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.channels.tfidf import documents
from recsys_ray.retrieval.item_encoder import derive, encode_item
from recsys_ray.retrieval.live_channels import LiveChannel, LiveContent
from recsys_ray.retrieval.live_items import ItemBody, item_table
from recsys_ray.retrieval.query_encoder import FrozenQueryEncoder, LiveVectors, QueryEncoder, TowerQueryEncoder
from recsys_ray.retrieval.release import Release
from recsys_ray.retrieval.sharded import ShardChannel

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Put:
    """Items that are new or changed: rows rising, one derived table row and one vector a space each."""

    rows: IntArray
    table: pa.Table
    vectors: tuple[dict[str, FloatArray], ...]

    def in_space(self, space_id: str, dim: int) -> FloatArray:
        """(n, D), zeros where an item has nothing that the space reads."""
        vectors = np.zeros((len(self.rows), dim), np.float32)
        for place, of_item in enumerate(self.vectors):
            if space_id in of_item:
                vectors[place] = of_item[space_id]
        return vectors


def encode_body(release: Release, item_id: str, body: ItemBody) -> ItemBody:
    """The same item with its vectors in all spaces of the release.

    Raises:
        ConfigError: Naming the field that does not fit the release's catalogue.
    """
    catalogue, encoders = release.catalogue, release.retriever.encoders
    item = derive(item_table(item_id, body.fields, catalogue.items.schema, catalogue.fields), catalogue.fields)
    row = catalogue.item_ids.row(item_id)
    vectors = encode_item(encoders, item, catalogue.fields, body.picture, row)
    return replace(body, spaces=tuple(encoder.space_id for encoder in encoders), vectors=vectors)


def with_changes(release: Release, changes: Sequence[ItemChange]) -> Release:
    """The release after some changes of the item log, in the log's order.

    An item whose entry does not fit this release's catalogue is left as it is, with a line in the log. One that was
    encoded for other spaces is encoded here anew: vectors of two spaces never meet.
    """
    newest = {change.item_id: change for change in changes}
    put = _read(release, [change for change in newest.values() if change.body is not None])
    removed = [change.item_id for change in newest.values() if change.body is None]
    if not len(put.rows) and not removed:
        return release
    known = [release.catalogue.row(item_id) for item_id in removed]
    gone = np.array([row for row in known if row >= 0], np.int64)
    original = put.table.select(release.catalogue.items.column_names)
    catalogue = release.catalogue.put(put.rows, original, removed)
    channels = {name: _changed(channel, release, put, gone) for name, channel in release.retriever.channels.items()}
    encoders = tuple(_reading(encoder, channels) for encoder in release.retriever.encoders)
    return replace(
        release, catalogue=catalogue, retriever=replace(release.retriever, channels=channels, encoders=encoders)
    )


def num_uncompacted(release: Release) -> int:
    """How many vectors are searched one by one, beside an index; the most of any channel."""
    channels = release.retriever.channels.values()
    return max((one.num_changed for one in channels if isinstance(one, NearestChannel | ShardChannel)), default=0)


def compacted(release: Release) -> Release:
    """The same with every index built anew of what holds now; takes as long as building them."""
    channels = {
        name: channel.compacted() if isinstance(channel, NearestChannel | ShardChannel) else channel
        for name, channel in release.retriever.channels.items()
    }
    encoders = tuple(_reading(encoder, channels) for encoder in release.retriever.encoders)
    return replace(release, retriever=replace(release.retriever, channels=channels, encoders=encoders))


def _read(release: Release, changes: Sequence[ItemChange]) -> _Put:
    catalogue = release.catalogue
    found: list[tuple[int, pa.Table, dict[str, FloatArray]]] = []
    spaces = {encoder.space_id for encoder in release.retriever.encoders}
    for change in changes:
        row = catalogue.item_ids.row(change.item_id)
        row = row if row >= 0 else len(catalogue.item_ids) + change.slot
        try:
            body = ItemBody.from_bytes(change.body or b"")
            if not spaces <= set(body.spaces):
                body = encode_body(release, change.item_id, body)
            table = item_table(change.item_id, body.fields, catalogue.items.schema, catalogue.fields)
        except (ConfigError, StoreError) as error:
            _log.warning("item %r of the item log does not fit this release: %s", change.item_id, error)
            continue
        found.append((row, table, dict(body.vectors)))
    found.sort(key=lambda one: one[0])
    tables = [table for _, table, _ in found]
    everything = pa.concat_tables([catalogue.items.slice(0, 0), *tables]).combine_chunks()
    rows = np.array([row for row, _, _ in found], np.int64)
    return _Put(rows, derive(everything, catalogue.fields), tuple(vectors for _, _, vectors in found))


def _changed(channel: Source, release: Release, put: _Put, gone: IntArray) -> Source:
    if isinstance(channel, NearestChannel | ShardChannel):
        return channel.put(put.rows, put.in_space(channel.space_id, channel.dim), gone)
    if isinstance(channel, ContentChannel | LiveContent):
        live = channel if isinstance(channel, LiveContent) else LiveContent.over(channel)
        return _changed_content(live, release, put, gone)
    num_items = len(release.catalogue.item_ids)
    live_channel = channel if isinstance(channel, LiveChannel) else LiveChannel(channel, Present(num_items))
    return replace(live_channel, present=live_channel.present.without(gone).holding(put.rows))


def _changed_content(channel: LiveContent, release: Release, put: _Put, gone: IntArray) -> LiveContent:
    base = channel.base
    found = documents(put.table, release.catalogue.fields, base.config.attribute_words)
    terms = base.tfidf.of_documents(list(found))
    neural = None if base.neural is None else put.in_space(base.neural.space_id, base.neural.vectors.shape[1])
    return channel.put(put.rows, terms, neural, gone)


def _reading(encoder: QueryEncoder, channels: dict[str, Source]) -> QueryEncoder:
    """The encoder, reading histories with the vectors that its space's index holds now."""
    if not isinstance(encoder, TowerQueryEncoder | FrozenQueryEncoder) or encoder.item_vectors is None:
        return encoder
    for channel in channels.values():
        if isinstance(channel, NearestChannel) and channel.space_id == encoder.space_id:
            index = channel.index
            return replace(encoder, item_vectors=LiveVectors(index) if isinstance(index, LiveIndex) else index.vectors)
    return encoder
