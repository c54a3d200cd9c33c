"""How stages are called: inline or in a thread, and what is repeated."""

import asyncio
import threading
import time
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayError, RayTaskError

from serve_app.calls import across, in_process

pytestmark = pytest.mark.anyio


async def test_quick_functions_move_into_the_event_loop_and_slow_ones_out_of_it() -> None:
    busy_s = 0.0

    def where() -> int:
        end = time.perf_counter() + busy_s
        while time.perf_counter() < end:
            pass
        return threading.get_ident()

    call = in_process(where)
    assert await call(1.0) != threading.get_ident()
    inline = [await call(1.0) == threading.get_ident() for _ in range(60)]
    assert inline[-1]
    busy_s = 0.05
    await call(1.0)
    assert await call(1.0) != threading.get_ident()


async def test_a_call_whose_time_went_by_in_the_queue_never_runs() -> None:
    let_go, ran = threading.Event(), []

    def work(number: int) -> int:
        let_go.wait()
        ran.append(number)
        return number

    call = in_process(work, threads=2)
    full = [asyncio.create_task(call(60.0, number)) for number in range(2)]
    late, cancelled = asyncio.create_task(call(0.0, 100)), asyncio.create_task(call(60.0, 101))
    await asyncio.sleep(0)
    cancelled.cancel()
    await asyncio.wait([cancelled])
    let_go.set()
    assert await asyncio.gather(*full) == list(range(2))
    with pytest.raises(TimeoutError):
        await late
    assert await call(60.0, 102) == 102
    assert sorted(ran) == [*range(2), 102]


async def test_an_inline_call_without_time_left_does_not_run() -> None:
    ran = 0

    def quick() -> None:
        nonlocal ran
        ran += 1

    call = in_process(quick)
    for _ in range(60):
        await call(1.0)
    with pytest.raises(TimeoutError):
        await call(-1.0)
    assert ran == 60


class Replica:
    """A handle's method whose first answers are errors."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.asked = 0

    async def remote(self, value: int) -> int:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


def wrapped(cause: Exception) -> RayTaskError:
    return RayTaskError("retrieve", "traceback", cause)


@pytest.mark.parametrize("death", [ActorDiedError(), wrapped(ActorDiedError()), ActorUnavailableError("gone", None)])
async def test_a_call_is_repeated_once_when_its_replica_died(death: Exception) -> None:
    method = Replica(death)
    assert await across(method)(3) == 3
    assert method.asked == 2
    with pytest.raises(RayError):
        await across(Replica(death, death))(3)


class Hanging:
    """A call across that never answers, until it is cancelled."""

    def __init__(self) -> None:
        self.cancelled = 0

    def remote(self) -> "Hanging":
        return self

    def __await__(self) -> Any:
        return asyncio.Event().wait().__await__()

    def cancel(self) -> None:
        self.cancelled += 1


async def test_a_call_across_that_nobody_waits_for_is_cancelled_there() -> None:
    method = Hanging()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await across(method)()
    assert method.cancelled == 1


@pytest.mark.parametrize("error", [wrapped(ValueError("bad")), ValueError("bad")])
async def test_nothing_else_is_repeated(error: Exception) -> None:
    method: Any = Replica(error)
    with pytest.raises(type(error)):
        await across(method)(3)
    assert method.asked == 1
