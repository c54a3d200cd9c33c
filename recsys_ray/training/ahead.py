"""Work done ahead of who waits for it: the next batches are made in a thread while the device is busy with this one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(make: Callable[[T], R], of: Iterable[T], count: int) -> Generator[R, None, None]:
    """What `make` gives for each, in order; `count` of them are asked for before they are needed.

    One thread makes them, one after the other, so they are those of a plain loop where `make` depends on nothing that
    the caller changes meanwhile. An error is raised where its result would have come. Close the iterator where it is
    not read to its end: the thread then ends with what it has in hand.

    Args:
        make: Called in the thread; with a `count` of 0 in the caller's.
        of: Read in the caller's thread.
        count: How many.
    """
    if not count:
        yield from map(make, of)
        return
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, "batches ahead") as thread:
        try:
            for one in of:
                waiting.append(thread.submit(make, one))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
