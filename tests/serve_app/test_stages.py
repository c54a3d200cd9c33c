"""Shards as replicas hold them, in this process: what they load, how they are asked, and what a missing one costs."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_ray.core.errors import ArtifactError
from recsys_ray.index.shard import Shard
from recsys_ray.online.stores import open_item_log
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.filters import Range
from recsys_ray.retrieval.live import encode_body, with_changes
from recsys_ray.retrieval.live_items import ItemBody
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release, load_release
from recsys_ray.retrieval.sharded import load_shard_release
from recsys_ray.retrieval.text_backends import TextEncoderConfig
from serve_app.config import Live, ServeConfig
from serve_app.stages import load_retrieving, together


def config_of(release_path: Path, store: str | None) -> ServeConfig:
    values = {"release": str(release_path), "topology": "composed", "shards": {"nearest": 3}}
    return ServeConfig.model_validate({**values, "live": Live(store=store, max_lag_s=None)})


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'live.sqlite'}"


def ask(runner: asyncio.Runner, config: ServeConfig, path: Path, queries: Queries, k: int) -> Candidates:
    async def asked() -> Candidates:
        shards = [load_retrieving(config, "nearest", Shard(number, 3), path) for number in range(3)]
        return await together(shards)(queries, k, 30.0)

    return runner.run(asked())


def questions(release: Release) -> Iterator[Queries]:
    for filters in (None, Range("price", min=10), Range("price", min=1e9)):
        question = release.question(["i1", "i50", "i7"], filters=filters)
        yield release.retriever.encode(question.queries)


def assert_same(found: Candidates, expected: Candidates) -> None:
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)


@pytest.mark.parametrize("k", [1, 50, 300])
def test_shards_of_a_release_that_never_changes(
    release: Release, release_path: Path, runner: asyncio.Runner, k: int
) -> None:
    for queries in questions(release):
        found = ask(runner, config_of(release_path, None), release_path, queries, k)
        assert_same(found, release.retriever.channels["nearest"].retrieve(queries, k))


def test_shards_read_the_item_log_each_for_its_rows(release_path: Path, runner: asyncio.Runner, store: str) -> None:
    release, log = load_release(release_path), open_item_log(store)
    for number in range(5):
        body = ItemBody({"title": "Zanzibar", "category": "ocean", "price": 12.5 + number}, None, (), {})
        log.append(f"new{number}", encode_body(release, f"new{number}", body).to_bytes())
    log.append("i8", encode_body(release, "i8", ItemBody({"category": "ocean"}, None, (), {})).to_bytes())
    for gone in ("i5", "i90", "new3"):
        log.append(gone, None)
    changed = with_changes(release, log.read(0, 100))
    for queries in questions(changed):
        found = ask(runner, config_of(release_path, store), release_path, queries, 200)
        assert_same(found, changed.retriever.channels["nearest"].retrieve(queries, 200))
    for number in range(3):
        part = with_changes(
            load_shard_release(release_path, "nearest", Shard(number, 3), TextEncoderConfig()), log.read(0, 100)
        )
        assert list(part.retriever.channels) == ["nearest"]
        assert len(part.retriever.channels["nearest"].base.index.vectors) < len(release.item_ids) / 2


def test_a_channel_without_an_index_has_no_shards(release_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"'popularity' .* not of kind nearest"):
        load_retrieving(config_of(release_path, None), "popularity", Shard(0, 2), release_path)


@pytest.mark.parametrize("error", [TimeoutError, OSError])
def test_without_one_shard_there_is_no_list_and_nobody_waits_for_the_others(
    runner: asyncio.Runner, error: type[Exception]
) -> None:
    cancelled = []

    async def fails(*_: Any) -> Candidates:
        raise error

    async def hangs(*_: Any) -> Candidates:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise
        return Candidates.empty(1, 1)

    async def asked() -> None:
        with pytest.raises(error):
            await together([hangs, fails, hangs])(Queries.of_texts(("",)), 1, 1.0)
        await asyncio.sleep(0)

    runner.run(asked())
    assert cancelled == [True, True]
