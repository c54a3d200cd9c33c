"""Recall measured on live questions: a bad index is found out, a good one is not, and nobody waits for it."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recsys_ray.core.arrays import Ragged
from recsys_ray.index.live import LiveIndex
from recsys_ray.index.spec import IndexConfig, choose
from recsys_ray.index.subset import Allowed, Subset
from recsys_ray.retrieval.channels.nearest import NearestChannel
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
from serve_app.api import StatusAnswer
from serve_app.config import RecallCheck, ServeConfig
from serve_app.deployments import Gateway
from serve_app.live_recall import LiveRecall
from serve_app.metrics import Metrics
from serve_app.recall import changed_share, head_of, measure

N, D, K = 4000, 16, 10
RNG = np.random.default_rng(0)
ALL = RecallCheck(share=1.0, window=60, queue=100)


def unit(count: int) -> np.ndarray:
    vectors = RNG.normal(size=(count, D)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


VECTORS = unit(N)


def with_index(release: Release, probes: int) -> Release:
    """The release with an index of 64 lists in the place of its own, of which so many are looked into."""
    config = IndexConfig(factory="IVF64,Flat", parameters=f"nprobe={probes}", k=K, target_recall=0.9)
    choice = choose(VECTORS, unit(20), config)
    own = release.retriever.channels["nearest"]
    assert isinstance(own, NearestChannel)
    channel = replace(own, index=choice.index, facts={"index": choice.summary()})
    return replace(release, retriever=replace(release.retriever, channels={"nearest": channel}))


@pytest.fixture(scope="module")
def bad(release: Release) -> Release:
    return with_index(release, 1)


@pytest.fixture(scope="module")
def good(release: Release) -> Release:
    return with_index(release, 64)


def nearest(release: Release) -> NearestChannel:
    channel = release.retriever.channels["nearest"]
    assert isinstance(channel, NearestChannel)
    return channel


def question(release: Release, share: float | None = None, exclude: tuple[int, ...] = ()) -> Queries:
    allowed = None if share is None else Allowed.everywhere(Subset(np.arange(N) < share * N), 1)
    seen = Ragged.of([exclude])
    return Queries(seen, seen, (None,), vectors={nearest(release).space_id: unit(1)}, allowed=allowed)


def measured(recall: LiveRecall, release: Release, count: int, share: float | None = None) -> LiveRecall:
    for _ in range(count):
        recall.offer(release, question(release, share), ("nearest",))
    while recall.num_waiting:
        recall.step()
    return recall


def test_a_bad_index_is_found_out(bad: Release) -> None:
    recall = measured(LiveRecall(ALL), bad, 20)
    assert recall.reason is None  # too few to say anything
    measured(recall, bad, 40)
    assert recall.reason is not None
    assert "channel 'nearest': recall 0." in recall.reason
    assert "the target is 0.9: publish a release" in recall.reason
    status = recall.status()
    assert status["rebuild_wanted"] is True
    assert 0 < status["recall"]["nearest"]["no_filter"] < 0.6


def test_a_good_index_is_left_alone(good: Release) -> None:
    recall = measured(LiveRecall(ALL), good, 60)
    assert recall.status() == {
        "share": 1.0,
        "recall": {"nearest": {"no_filter": 1.0}},
        "rebuild_wanted": False,
        "reason": None,
    }


def test_the_target_can_be_set(bad: Release) -> None:
    assert measured(LiveRecall(replace_target(0.05)), bad, 60).reason is None


def replace_target(target: float) -> RecallCheck:
    return ALL.model_copy(update={"target": target})


def test_a_mean_that_chance_explains_is_no_reason(good: Release) -> None:
    recall = measured(LiveRecall(ALL.model_copy(update={"target": 1.0})), good, 60)
    assert recall.reason is None


def test_recall_is_that_of_plain_products(bad: Release) -> None:
    head = np.arange(N) < N // 3
    for _ in range(20):
        asked = question(bad, exclude=(3, 5, 7))
        scores = VECTORS @ asked.vectors[nearest(bad).space_id][0]
        scores[[3, 5, 7]] = -np.inf
        best = np.argsort(-scores)[:K]
        hit = np.isin(best, nearest(bad).retrieve(asked, K).rows[0])
        found = measure(nearest(bad), asked, head)
        assert found is not None
        assert found.recall == pytest.approx(hit.mean())
        for name, mask in (("head", head[best]), ("tail", ~head[best])):
            assert found.of_items.get(name) == (pytest.approx(hit[mask].mean()) if mask.any() else None)


def test_questions_are_told_apart_by_what_their_filters_allow(bad: Release) -> None:
    recall = LiveRecall(ALL)
    for share in (0.5, 0.05, 0.005, None):
        measured(recall, bad, 5, share)
    found = recall.status()["recall"]["nearest"]
    # What filters let through is searched exactly (`index.filtered_recall`), so they hide no bad index.
    assert {name: found.pop(name) for name in ("over_10_percent", "1_to_10_percent", "under_1_percent")} == {
        "over_10_percent": 1.0,
        "1_to_10_percent": 1.0,
        "under_1_percent": 1.0,
    }
    assert found["no_filter"] < 0.6


def test_what_waits_is_bounded(good: Release) -> None:
    recall = LiveRecall(RecallCheck(share=1.0, queue=4))
    for _ in range(20):
        recall.offer(good, question(good), ("nearest",))
    assert (recall.num_waiting, recall.num_dropped) == (4, 16)


def test_a_share_of_the_questions_is_taken(good: Release) -> None:
    recall = LiveRecall(RecallCheck(share=0.25, queue=1000))
    asked = question(good)
    for _ in range(1000):
        recall.offer(good, asked, ("nearest",))
    assert 150 < recall.num_waiting < 350


def test_nothing_happens_where_the_share_is_0(good: Release) -> None:
    recall, metrics, threads = LiveRecall(RecallCheck(share=0)), Metrics(), threading.active_count()
    recall.start(metrics)
    recall.offer(good, question(good), ("nearest",))
    assert recall.num_waiting == 0
    assert threading.active_count() == threads
    assert "recall" not in metrics.text()


def test_nothing_is_measured_while_somebody_waits(good: Release) -> None:
    in_flight = [1]
    metrics = Metrics()
    metrics.watch("recsys_in_flight", lambda: in_flight[0])
    recall = LiveRecall(ALL)
    recall.watch(metrics)
    recall.offer(good, question(good), ("nearest",))
    recall.step()
    assert recall.num_waiting == 1
    in_flight[0] = 0
    recall.step()
    assert recall.num_waiting == 0
    text = metrics.text()
    assert 'recsys_live_recall{channel="nearest",questions="no_filter"} 1.000000' in text
    assert 'recsys_live_recall_questions{channel="nearest",questions="no_filter"} 1.000000' in text
    assert 'recsys_index_changed_share{channel="nearest"} 0.000000' in text
    assert "recsys_rebuild_wanted 0.000000" in text


def test_measuring_rests_as_long_as_its_share_of_a_core_asks(good: Release) -> None:
    recall = LiveRecall(RecallCheck(share=1.0, core_share=0.01))
    recall.offer(good, question(good), ("nearest",))
    started = time.thread_time()
    rest_s = recall.step()
    assert 0 < rest_s <= 99 * (time.thread_time() - started)


def test_samples_of_a_release_that_was_replaced_are_let_go(bad: Release, good: Release) -> None:
    recall = measured(LiveRecall(ALL), bad, 60)
    for _ in range(3):
        recall.offer(bad, question(bad), ("nearest",))
    manifest = replace(good.artifact.manifest, id="next")
    after = replace(good, artifact=replace(good.artifact, manifest=manifest))
    recall.offer(after, question(after), ("nearest",))
    assert recall.num_waiting == 1
    recall.step()
    assert recall.reason is None
    assert recall.status()["recall"] == {"nearest": {"no_filter": 1.0}}


def test_the_age_of_an_index_is_what_changed_since(good: Release) -> None:
    channel = nearest(good)
    index = LiveIndex.over(channel.index).put(np.array([5, N + 2]), unit(2), np.array([7, 9]))
    assert changed_share(channel) == 0
    assert changed_share(replace(channel, index=index)) == pytest.approx(4 / (N + 3))


def test_the_head_holds_half_of_the_events(release: Release) -> None:
    head, counts = head_of(release), np.bincount(release.histories.events.rows, minlength=len(release.item_ids))
    assert counts[head].min() >= counts[~head].max()
    assert counts[head].sum() >= 0.5 * counts.sum() > counts[head].sum() - counts[head].min()


def test_the_application_shows_it(
    release_path: Path, runner: Any, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    import httpx

    config = ServeConfig.parse({"release": str(release_path), "recall": {"share": 1, "core_share": 1}})
    app = Gateway(config).__serve_build_asgi_app__()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")

    def ask(method: str, path: str, **kwargs: Any) -> httpx.Response:
        return runner.run(client.request(method, path, **kwargs))

    body = {"history": ["i1", "i2"], "filters": {"op": "equals", "field": "category", "value": "ocean"}}
    assert ask("POST", "/v1/recommend", json=body).status_code == 200
    assert ask("POST", "/v1/recommend", json={"history": ["i1", "i2"]}).status_code == 200
    wait_until(lambda: len(ask("GET", "/v1/status").json()["recall"]["recall"].get("nearest", {})) == 2)
    status = StatusAnswer.model_validate(ask("GET", "/v1/status").json())
    assert status.recall.recall["nearest"]["no_filter"] == 1.0
    assert not status.recall.rebuild_wanted
    text = ask("GET", "/metrics").text
    assert 'recsys_live_recall_of_items{channel="nearest",items="head"} 1.000000' in text
    assert "recsys_rebuild_wanted 0.000000" in text
