"""How a stage is called: inside this process, or across to a deployment. To the engine both look the same.

Every call says how much time it has. What has none left does not begin: a call that waited too long for a thread, here
or in the replica it went to, would be work for nobody.

Retries live here and nowhere else: a call across is repeated once when the replica it went to has died, and for no
other reason.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayTaskError

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_BELOW_S = 1e-3
_SMOOTHING = 0.2


def in_process(function: Callable[P, T], threads: int = 1) -> Callable[Concatenate[float, P], Awaitable[T]]:
    """Call a function of this process without holding up the event loop; the first argument is the time it has.

    What takes over a millisecond goes to a thread; what takes less runs inline, since the way to a thread and back
    costs about a tenth of one. The running mean of the function's own time decides; the first call goes to a thread.
    The threads are the function's own: one that hangs takes no other's. One is enough for what computes: stages and
    requests overlap all the same, and more of them take the interpreter from the event loop, which has to answer those
    that are refused. Its own time is the processor's: by the clock, stages that wait for each other's interpreter in
    threads would each look long, and stay there. What waits for another machine takes more threads, and the clock.

    The call raises TimeoutError, and the function is not run, when its turn comes after its time.
    """
    mean_s = 1.0
    clock = time.thread_time if threads == 1 else time.perf_counter
    pool = ThreadPoolExecutor(threads, thread_name_prefix="stage")

    def timed(due: float, *args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal mean_s
        if time.perf_counter() > due:
            raise TimeoutError
        start = clock()
        try:
            return function(*args, **kwargs)
        finally:
            mean_s += _SMOOTHING * (min(clock() - start, 1.0) - mean_s)

    async def call(timeout_s: float, /, *args: P.args, **kwargs: P.kwargs) -> T:
        due = time.perf_counter() + timeout_s
        if mean_s < _INLINE_BELOW_S:
            return timed(due, *args, **kwargs)
        run = partial(timed, due, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(pool, run)

    return call


def across(method: Any) -> Callable[..., Awaitable[Any]]:
    """Call a method of a deployment handle, once more when the replica died under the first call.

    A call that is not waited for any more is cancelled, also where it has reached its replica.

    Args:
        method: ``handle.method_name`` of a Ray Serve `DeploymentHandle`.
    """

    async def once(*args: Any) -> Any:
        response = method.remote(*args)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # Ray Serve itself only stops to wait
            raise

    async def call(*args: Any) -> Any:
        try:
            return await once(*args)
        except (RayActorError, RayTaskError) as error:
            if not _replica_died(error):
                raise
        return await once(*args)

    return call


def _replica_died(error: BaseException) -> bool:
    """Whether the call failed because its replica is gone, also when Ray wrapped that into a task error."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RayActorError)
