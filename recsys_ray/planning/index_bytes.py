"""Bytes of an index before it is built, from the factory strings that `recsys_ray.index.spec` measures.

Layouts as FAISS 1.12 and later write them (Douze et al. 2024, "The Faiss library"); a test builds each of them.
"""

import re

from recsys_ray.core.errors import ConfigError
from recsys_ray.index.exact import EXACT

FLOAT, ROW = 4, 8  # bytes of a float32 and of a row number
_HNSW = re.compile(r"HNSW(\d+)")
_IVF = re.compile(r"IVF(\d+),(Flat|SQ8)")
_PQ = re.compile(r"PQ(\d+)x4fs,RFlat")
_FAST_SCAN_BLOCK = 32  # codes of a fast-scan index come in blocks of so many


def vectors_bytes(num_items: int, dim: int) -> int:
    """The raw vectors, which every index keeps beside it to score exactly; mapped, so shared by a node's processes."""
    return num_items * dim * FLOAT


def index_bytes(factory: str, num_items: int, dim: int) -> int:
    """Bytes that a process holds for the index itself, beside the vectors; about those of its file.

    Args:
        factory: One of those that `index.factory = auto` measures.
        num_items: N.
        dim: D.

    Raises:
        ConfigError: When the factory is none of them.
    """
    return int(num_items * bytes_per_item(factory, dim) + _fixed(factory, dim))


def formula(factory: str) -> str:
    """The same in words, for people."""
    if factory == EXACT:
        return "0: the vectors are the index"
    if factory == "SQfp16":
        return "2 D N"
    if _HNSW.fullmatch(factory):
        return "(4 D + 8 M + 4 M / (M - 1) + 12) N: vectors, 2 M links below, M above for each 1 in M"
    if match := _IVF.fullmatch(factory):
        return f"({'4 D' if match[2] == 'Flat' else 'D'} + 8) N + 4 D lists"
    return "(D / 4 + 4 D) N: 4 bits for each 2 dimensions, vectors to refine"


def bytes_per_item(factory: str, dim: int) -> float:
    """Bytes that one more item takes.

    Raises:
        ConfigError: When the factory is none that `auto` measures.
    """
    if factory == EXACT:
        return 0.0
    if factory == "SQfp16":
        return 2.0 * dim
    if match := _HNSW.fullmatch(factory):
        links = int(match[1])
        # Of M links a node, one node in M stands on a level above (Malkov and Yashunin 2016); level and offset 12.
        return FLOAT * dim + 2 * links * 4 + links / (links - 1) * 4 + 12
    if match := _IVF.fullmatch(factory):
        return (FLOAT * dim if match[2] == "Flat" else dim) + ROW
    if match := _PQ.fullmatch(factory):
        return int(match[1]) / 2 + FLOAT * dim
    raise ConfigError("index.factory", factory, "exact, SQfp16, IVFn,SQ8, IVFn,Flat, HNSWm or PQmx4fs,RFlat")


def _fixed(factory: str, dim: int) -> float:
    if match := _IVF.fullmatch(factory):
        return int(match[1]) * dim * FLOAT
    if _PQ.fullmatch(factory):
        return 16 * dim * FLOAT + _FAST_SCAN_BLOCK * dim / 4
    return 0.0
