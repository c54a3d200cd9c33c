"""The engine over the release's own stages, some of them replaced by ones that never answer or that fail."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recsys_ray.core.arrays import FloatArray
from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
from serve_app.calls import in_process
from serve_app.config import Breaker
from serve_app.deadline import Deadline
from serve_app.engine import (
    ENCODER,
    AllChannelsFailed,
    DeadlinePassed,
    Encode,
    Engine,
    Fallback,
    Retrieve,
    Trace,
    fallback_name,
)

pytestmark = pytest.mark.anyio

K = 5


def stages(release: Release) -> tuple[Encode, dict[str, Retrieve]]:
    async def encode(queries: Queries, timeout_s: float) -> dict[str, FloatArray]:
        return release.retriever.encode(queries).vectors

    return encode, {name: timed(channel.retrieve) for name, channel in release.retriever.channels.items()}


def timed(retrieve: Callable[[Queries, int], Candidates]) -> Retrieve:
    call = in_process(retrieve)

    async def candidates(queries: Queries, k: int, timeout_s: float) -> Candidates:
        return await call(timeout_s, queries, k)

    return candidates


async def never(*_: Any) -> Any:
    await asyncio.Event().wait()


async def fails(*_: Any) -> Any:
    raise OSError("broken")


async def ask(release: Release, engine: Engine, timeout_s: float = 5.0) -> tuple[list[int], Trace]:
    question, trace = release.question(["i3", "i10"]), Trace()
    fused = await engine.candidates(question, release.fusion_for(question), K, Deadline(timeout_s), trace)
    return fused.candidates.rows[0].tolist(), trace


async def test_all_stages_in_time_give_what_the_retriever_gives(release: Release) -> None:
    engine = Engine(*stages(release))
    assert ENCODER in engine.not_ready
    rows, trace = await ask(release, engine)
    question = release.question(["i3", "i10"])
    assert rows == release.ask(question, K).candidates.rows[0].tolist()
    assert trace.degraded == engine.not_ready == []


@pytest.mark.parametrize("broken", [never, fails])
@pytest.mark.parametrize("left_out", [["nearest"], ["co_visitation", "popularity"]])
async def test_late_and_failed_channels_are_left_out_and_named(
    release: Release, broken: Retrieve, left_out: list[str]
) -> None:
    encode, channels = stages(release)
    rows, trace = await ask(release, Engine(encode, {**channels, **dict.fromkeys(left_out, broken)}), 0.8)
    others = [name for name in channels if name not in left_out]
    expected = release.retriever.only(others).recommend(release.question(["i3", "i10"]).queries, K)
    assert sorted(trace.degraded) == sorted(left_out)
    assert (trace.late if broken is never else trace.failed) == trace.degraded
    assert rows == expected.candidates.rows[0].tolist()


async def test_a_late_encoder_leaves_time_for_channels_that_need_no_vector(release: Release) -> None:
    _, channels = stages(release)
    rows, trace = await ask(release, Engine(never, channels), 1.0)
    assert trace.degraded == [ENCODER]
    assert rows[0] >= 0


async def test_nothing_in_time_and_nothing_at_all_are_told_apart(release: Release) -> None:
    encode, channels = stages(release)
    with pytest.raises(DeadlinePassed):
        await ask(release, Engine(encode, dict.fromkeys(channels, never)), 0.05)
    with pytest.raises(AllChannelsFailed):
        await ask(release, Engine(encode, dict.fromkeys(channels, fails)))


async def test_channels_are_asked_at_the_same_time(release: Release) -> None:
    """Every channel waits until all have been asked: one after the other, none would ever answer."""
    encode, channels = stages(release)
    everyone = asyncio.Barrier(len(channels))

    async def meet(queries: Queries, k: int, timeout_s: float) -> Candidates:
        await everyone.wait()
        return Candidates(np.array([[7]]), np.ones((1, 1), np.float32))

    rows, trace = await ask(release, Engine(encode, dict.fromkeys(channels, meet)))
    assert rows[0] == 7
    assert trace.degraded == []


async def test_an_answer_never_takes_longer_than_its_deadline(release: Release) -> None:
    _, channels = stages(release)
    start = time.monotonic()
    await ask(release, Engine(never, {**channels, "nearest": never}), 0.4)
    assert time.monotonic() - start < 0.4 + 0.1


async def test_no_stage_begins_after_the_deadline(release: Release) -> None:
    asked: Counter[str] = Counter()

    def counting(name: str) -> Any:
        async def count(*_: Any) -> Any:
            asked[name] += 1

        return count

    engine = Engine(counting(ENCODER), {name: counting(name) for name in release.retriever.channels})
    with pytest.raises(DeadlinePassed):
        await ask(release, engine, -0.01)
    assert not asked


@pytest.mark.parametrize("broken", [never, fails])
async def test_a_channel_that_keeps_failing_is_left_out_at_once_and_comes_back(
    release: Release, broken: Retrieve
) -> None:
    encode, channels = stages(release)
    mended, good = False, channels["nearest"]

    async def nearest(queries: Queries, k: int, timeout_s: float) -> Candidates:
        return await (good if mended else broken)(queries, k, timeout_s)

    breaker = Breaker(failures=2, pause_s=0.05, min_timeout_ms=1)
    engine = Engine(encode, {**channels, "nearest": nearest}, breaker=breaker)
    for _ in range(2):
        assert engine.circuits["nearest"].state == "closed"
        await ask(release, engine, 0.5)
    assert engine.circuits["nearest"].state == "open"
    start = time.monotonic()
    _, trace = await ask(release, engine, 5.0)
    assert trace.degraded == ["nearest"]
    assert time.monotonic() - start < 4.0  # a channel that never answers is not waited for any more
    assert {engine.circuits[name].state for name in channels if name != "nearest"} == {"closed"}
    mended = True
    while trace.degraded:
        _, trace = await ask(release, engine)
    assert engine.circuits["nearest"].state == "closed"


async def test_a_client_in_a_hurry_opens_no_circuit(release: Release) -> None:
    encode, channels = stages(release)
    engine = Engine(encode, {**channels, "nearest": never}, breaker=Breaker(failures=1, min_timeout_ms=1000))
    await ask(release, engine, 0.1)
    assert engine.circuits["nearest"].state == "closed"


async def test_a_channel_that_hangs_in_its_threads_takes_no_other_channels_time(release: Release) -> None:
    encode, channels = stages(release)
    let_go = threading.Event()

    def hang(queries: Queries, k: int) -> Candidates:
        let_go.wait()
        return Candidates.empty(1, k)

    engine = Engine(encode, {**channels, "nearest": timed(hang)}, breaker=Breaker(failures=100))
    try:
        for _ in range(3):
            _, trace = await ask(release, engine, 0.5)
            assert trace.degraded == ["nearest"]
    finally:
        let_go.set()


@pytest.mark.parametrize("broken", [never, fails])
async def test_the_fallback_answers_when_nothing_else_does(release: Release, broken: Retrieve) -> None:
    _, channels = stages(release)
    fallback = Fallback("popularity", release.retriever.channels["popularity"].retrieve)
    engine = Engine(broken, dict.fromkeys(channels, broken), fallback=fallback)
    rows, trace = await ask(release, engine, 0.1)
    question = release.question(["i3", "i10"])
    assert rows == release.retriever.channels["popularity"].retrieve(question.queries, K).rows[0].tolist()
    assert set(trace.degraded) == {ENCODER, *channels}


async def test_the_fallback_speaks_only_to_questions_that_concern_it(release: Release) -> None:
    encode, channels = stages(release)
    fallback = Fallback("popularity", release.retriever.channels["popularity"].retrieve)
    engine = Engine(encode, dict.fromkeys(channels, fails), fallback=fallback)
    question = release.question(text="red ocean")
    with pytest.raises(AllChannelsFailed):
        await engine.candidates(question, release.fusion_for(question), K, Deadline(5.0), Trace())


async def test_a_fallback_that_fails_too_is_no_worse_than_none(release: Release) -> None:
    encode, channels = stages(release)

    def raises(queries: Queries, k: int) -> Candidates:
        raise OSError("broken")

    with pytest.raises(AllChannelsFailed):
        await ask(release, Engine(encode, dict.fromkeys(channels, fails), fallback=Fallback("popularity", raises)))


def test_the_fallback_is_a_channel_that_reads_nothing(release: Release) -> None:
    channels = release.retriever.channels
    assert fallback_name("auto", channels) == fallback_name("popularity", channels) == "popularity"
    assert fallback_name(None, channels) is None
    assert fallback_name("auto", {"nearest": channels["nearest"]}) is None
    for wrong in ("nearest", "nothing"):
        with pytest.raises(ConfigError, match="auto, popularity, null"):
            fallback_name(wrong, channels)
