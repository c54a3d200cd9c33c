"""The engine over the release's own stages, some of them replaced by ones that never answer or that fail."""

import asyncio
import time
from typing import Any

import numpy as np
import pytest

from recsys_ray.core.arrays import FloatArray
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.query import Queries
from recsys_ray.retrieval.release import Release
from serve_app.calls import in_process
from serve_app.engine import ENCODER, AllChannelsFailed, Deadline, DeadlinePassed, Encode, Engine, Retrieve, Trace

pytestmark = pytest.mark.anyio

K = 5


def stages(release: Release) -> tuple[Encode, dict[str, Retrieve]]:
    async def encode(queries: Queries) -> dict[str, FloatArray]:
        return release.retriever.encode(queries).vectors

    return encode, {name: in_process(channel.retrieve) for name, channel in release.retriever.channels.items()}


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
    rows, trace = await ask(release, Engine(encode, {**channels, **dict.fromkeys(left_out, broken)}), 0.2)
    others = [name for name in channels if name not in left_out]
    expected = release.retriever.only(others).recommend(release.question(["i3", "i10"]).queries, K)
    assert sorted(trace.degraded) == sorted(left_out)
    assert (trace.late if broken is never else trace.failed) == trace.degraded
    assert rows == expected.candidates.rows[0].tolist()


async def test_a_late_encoder_leaves_time_for_channels_that_need_no_vector(release: Release) -> None:
    _, channels = stages(release)
    rows, trace = await ask(release, Engine(never, channels), 0.3)
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

    async def meet(queries: Queries, k: int) -> Candidates:
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
