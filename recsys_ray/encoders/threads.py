"""How many threads torch computes with, for the length of a block."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use so many threads and restore what was set before.

    Small models on small batches get slower with more: on two cores MiniLM took 191 ms with two threads, 9 with one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
