"""How a stage is called: inside this process, or across to a deployment. To the engine both look the same.

Retries live here and nowhere else: a call across is repeated once when the replica it went to has died, and for no
other reason.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec, TypeVar

from ray.exceptions import RayActorError, RayTaskError

P = ParamSpec("P")
T = TypeVar("T")

_INLINE_BELOW_S = 1e-3
_SMOOTHING = 0.2


def in_process(function: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """Call a function of this process without holding up the event loop.

    What takes over a millisecond goes to a thread; what takes less runs inline, since the way to a thread and back
    costs about a tenth of one. The running mean of the function's own time decides; the first call goes to a thread.
    """
    mean_s = 1.0

    def timed(*args: P.args, **kwargs: P.kwargs) -> T:
        nonlocal mean_s
        start = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            mean_s += _SMOOTHING * (min(time.perf_counter() - start, 1.0) - mean_s)

    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if mean_s < _INLINE_BELOW_S:
            return timed(*args, **kwargs)
        return await asyncio.to_thread(timed, *args, **kwargs)

    return call


def across(method: Any) -> Callable[..., Awaitable[Any]]:
    """Call a method of a deployment handle, once more when the replica died under the first call.

    Args:
        method: ``handle.method_name`` of a Ray Serve `DeploymentHandle`.
    """

    async def call(*args: Any) -> Any:
        try:
            return await method.remote(*args)
        except (RayActorError, RayTaskError) as error:
            if not _replica_died(error):
                raise
        return await method.remote(*args)

    return call


def _replica_died(error: BaseException) -> bool:
    """Whether the call failed because its replica is gone, also when Ray wrapped that into a task error."""
    cause = error.cause if isinstance(error, RayTaskError) else error
    return isinstance(cause, RayActorError)
