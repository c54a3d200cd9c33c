"""How stages are called: inline or in a thread, and what is repeated."""

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
    assert await call() != threading.get_ident()
    inline = [await call() == threading.get_ident() for _ in range(60)]
    assert inline[-1]
    busy_s = 0.05
    await call()
    assert await call() != threading.get_ident()


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


@pytest.mark.parametrize("error", [wrapped(ValueError("bad")), ValueError("bad")])
async def test_nothing_else_is_repeated(error: Exception) -> None:
    method: Any = Replica(error)
    with pytest.raises(type(error)):
        await across(method)(3)
    assert method.asked == 1
