"""Seconds of a search on one core, predicted from what `recsys_ray.planning.calibration` measured.

Scans go on linearly from the largest size that was measured; an IVF search is its coarse search, plus the lists it
opens, plus the codes it scans; an HNSW search is the distances it computes, each as dear as a read at random from so
much memory.
"""

import math
from dataclasses import dataclass

import numpy as np

from recsys_ray.index.exact import EXACT
from recsys_ray.index.spec import num_lists

_MOST_PROBES = 256  # beyond, and beyond a quarter of the lists, the project tries none


@dataclass(frozen=True)
class Curve:
    """Seconds by a number of vectors: straight lines between what was measured, and on from the last two."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __call__(self, size: float) -> float:
        """Seconds at a size."""
        last = self.sizes[-1]
        if size <= last:
            return float(np.interp(size, self.sizes, self.seconds))
        return self.seconds[-1] + self.rate(last) * (size - last)

    def rate(self, size: float) -> float:
        """Seconds for one more vector among so many: in the cache less than past it."""
        if len(self.sizes) < 2:
            return 0.0
        place = min(max(int(np.searchsorted(self.sizes, size)), 1), len(self.sizes) - 1)
        more = self.seconds[place] - self.seconds[place - 1]
        return max(0.0, more / (self.sizes[place] - self.sizes[place - 1]))


@dataclass(frozen=True)
class Goal:
    """How many results a search gives, and what share of the true ones are among them."""

    k: int
    recall: float


@dataclass(frozen=True)
class Need:
    """The search setting that holds the recall: `at` for `size` vectors, growing with the size to a power.

    Attributes:
        size: Vectors of the larger measurement.
        at: The setting there, between the powers of two that are tried; infinity where no setting held the recall.
        power: Measured between two sizes, at least 0.
    """

    size: int
    at: float
    power: float

    def __call__(self, size: float) -> float:
        """The setting at a size, as the power of two that `index.factory = auto` would take."""
        wanted = self.at * max(1.0, size / self.size) ** self.power
        return wanted if math.isinf(wanted) else 2.0 ** math.ceil(math.log2(max(1.0, wanted)) - 0.05)


@dataclass(frozen=True)
class Ivf:
    """What an IVF search costs beside its codes.

    Attributes:
        open_s: Opening one list.
        skew: How much longer the probed lists are than the average.
    """

    open_s: float
    skew: float


@dataclass(frozen=True)
class Hnsw:
    """What an HNSW search costs.

    Attributes:
        size: Vectors of the measurement.
        distances: Distances computed for each unit of efSearch there; grows with the logarithm of the size.
        distance_s: One of them there.
    """

    size: int
    distances: float
    distance_s: float


@dataclass(frozen=True)
class Speeds:
    """What was measured on one core, for one length of vectors and one number of results.

    Attributes:
        dim: D.
        goal: Results of a search, and their recall.
        exact: The exact index.
        flat: FAISS over float32, in a raw call.
        fp16: FAISS over float16.
        sq8: FAISS over 8-bit codes.
        pq: FAISS over 4-bit codes of 2 dimensions, without refinement.
        finish_s: What the project's index adds to the FAISS call: scoring the results exactly.
        read: One vector read at random from so many.
        ivf: See there.
        hnsw: See there.
        needs: Family of the factory to the setting that holds the recall.
        jitter: The 95th percentile of a search, as a multiple of its median, on the machine as it was.
    """

    dim: int
    goal: Goal
    exact: Curve
    flat: Curve
    fp16: Curve
    sq8: Curve
    pq: Curve
    finish_s: float
    read: Curve
    ivf: Ivf
    hnsw: Hnsw
    needs: dict[str, Need]
    jitter: float

    def setting(self, factory: str, num_items: int) -> float:
        """The nprobe, efSearch or k_factor that holds the recall; 1 without such, infinity where none holds it."""
        need = self.needs.get(family(factory))
        setting = 1.0 if need is None else need(num_items)
        if factory.startswith("IVF") and setting > min(_MOST_PROBES, num_lists(num_items) // 4):
            return math.inf
        return setting

    def seconds(self, factory: str, setting: float, num_items: int) -> float:
        """Median seconds of one search on one core."""
        if factory == EXACT:
            return self.exact(num_items)
        finish = self.finish_s + self.goal.k * max(0.0, self.read(num_items) - self.read(0))
        if factory == "SQfp16":
            return finish + self.fp16(num_items)
        if factory.startswith("HNSW"):
            return finish + self._hnsw(setting, num_items)
        if factory.startswith("IVF"):
            lists = int(factory.removeprefix("IVF").split(",")[0])
            codes = (self.sq8 if factory.endswith("SQ8") else self.flat).rate(num_items)
            scanned = self.ivf.skew * num_items / lists * codes
            return finish + self.flat(lists) + min(setting, lists) * (self.ivf.open_s + scanned)
        return finish + self.pq(num_items) + setting * self.goal.k * self.read(num_items)

    def filtered_seconds(self, num_items: int, share: float) -> float:
        """Median seconds of a search that a filter narrows to a share of the items: each is read and scored."""
        return min(self.exact(num_items), self.finish_s + share * num_items * self.read(num_items))

    def _hnsw(self, width: float, num_items: int) -> float:
        levels = max(1.0, math.log(num_items) / math.log(self.hnsw.size))
        distance = self.hnsw.distance_s + max(0.0, self.read(num_items) - self.read(self.hnsw.size))
        return max(width, self.goal.k) * self.hnsw.distances * levels * distance


def family(factory: str) -> str:
    """A factory string without its numbers."""
    return "".join(letter for letter in factory if not letter.isdigit())
