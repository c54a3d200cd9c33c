"""Functions run as Ray tasks beside each other; what they all read lies in the object store once."""

from collections.abc import Callable
from typing import Any, Self

import ray

from recsys_ray.core.errors import RecsysError
from recsys_ray.encoders.threads import torch_threads


class Tasks:
    """Tasks of one CPU and one thread. A with block: when it is left by an error, those at work are cancelled.

    Args:
        shared: The first argument of every function; its arrays are read-only there.
    """

    def __init__(self, shared: Any) -> None:
        self._shared = ray.put(shared)
        self._running: set[ray.ObjectRef[Any]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            for task in list(self._running):
                ray.cancel(task, force=True)

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(shared, *args)`, computed by a task; waits for it. May be called from several threads.

        Raises:
            RecsysError: As the function raised it.
        """
        task = ray.remote(_on_one_thread).options(num_cpus=1).remote(self._shared, function, args)
        self._running.add(task)
        try:
            return ray.get(task)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RecsysError):
                raise error.cause from None
            raise
        finally:
            self._running.discard(task)


def _on_one_thread(shared: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    with torch_threads(1):
        return function(shared, *args)
