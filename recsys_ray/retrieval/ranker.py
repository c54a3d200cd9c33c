"""A small learned ranker over the merged list: gradient-boosted trees on what the channels say of a candidate.

It puts the first candidates of the weighted sum into a better order. A tree sees what no sum can: that a channel's rank
means more where its best score is high, or where the item is popular anyway.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.config import Config
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.union import Numbers, Union, best_first

REORDERED = 200
"""So many of a merged list are put in order."""
ABSENT = 10_000.0
"""The rank of a candidate in a list that does not have it."""
_TIE = 1e-4  # what the weighted sum counts beside the trees, which give many candidates the same chance
# Steps of the logarithm of an item's events, so coarse that they tell no item from others: trees that could name an
# item would learn by heart which ones validation asked for, instead of when a channel is right.
_POPULARITY_STEPS = 1.0
_SETTINGS: dict[str, Any] = {
    "objective": "binary",
    "num_leaves": 7,
    "learning_rate": 0.05,
    "min_data_in_leaf": 200,
    "lambda_l2": 5.0,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 63,
    # Bit-equal on every machine with this version of LightGBM.
    "deterministic": True,
    "force_col_wise": True,
    "num_threads": 1,
    "seed": 1,
    "verbosity": -1,
}
_TREES = 200


class Ranker(Config):
    """A fitted ranker; all of it is text, so that it lies in `fusion.json`.

    Attributes:
        channels: Those that its trees read, in order: channels that answer each question by itself.
        trees: LightGBM's model text.
        popularity: Of each item while it was fitted: bytes, compressed, base64. Empty: not known, 0 everywhere.
    """

    channels: tuple[str, ...]
    trees: str
    popularity: str = ""

    @property
    def item_popularity(self) -> FloatArray:
        """(N,) float32; of length 0 where it is not known."""
        return _unpacked(self.popularity)

    def scores(self, features: FloatArray) -> FloatArray:
        """(n,) float32 chance, 0 … 1, that each of n candidates is what was looked for."""
        if not len(features):
            return np.zeros(0, np.float32)
        found: FloatArray = _booster(self.trees).predict(features, num_threads=1).astype(np.float32)
        return found


@dataclass(frozen=True)
class First:
    """The first candidates of each query by the weighted sum, as the trees read them.

    Attributes:
        members: (n,) which of the union's distinct candidates they are.
        features: (n, 3 C + 2) by channel its scaled score, its rank and its best score; the sum and the popularity.
    """

    members: IntArray
    features: FloatArray


def first_of(
    lists: Mapping[str, Candidates],
    channels: Sequence[str],
    union: Union,
    of_entries: tuple[Numbers, FloatArray],
    popularity: FloatArray,
) -> First:
    """What is to be reordered.

    Args:
        lists: Channel to its candidates, as `union` holds them.
        channels: Those that the trees read, in order; one that is missing, since it was late, counts as an empty list.
        union: Of the lists.
        of_entries: (E,) scaled score of each entry of the union, and (U,) weighted sum of each distinct candidate.
        popularity: (N,) see `log_popularity`; of length 0 where it is not known.
    """
    scaled, scores = of_entries
    members, _ = best_first(union, scores, REORDERED)
    width = len(channels)
    features = np.zeros((len(union.row), 3 * width + 2), np.float32)
    features[:, width : 2 * width] = ABSENT
    for column, name in enumerate(channels):
        if name in lists:
            mine = union.channel == list(lists).index(name)
            features[union.member[mine], column] = scaled[mine]
            features[union.member[mine], width + column] = union.rank[mine]
            best = lists[name].scores[:, 0]
            features[:, 2 * width + column] = np.where(np.isfinite(best), best, 0.0)[union.query]
    features[:, -2] = scores
    # Items that came after the ranker was fitted count as met by nobody.
    known = union.row < len(popularity)
    features[known, -1] = popularity[union.row[known]]
    return First(members, features[members])


def reorder(
    lists: Mapping[str, Candidates], union: Union, scaled: Numbers, scores: FloatArray, ranker: Ranker
) -> FloatArray:
    """(U,) scores of the distinct candidates: 1 to 2 for those that the trees put in order, below 1 for the others.

    Args: See `first_of`.
    """
    first = first_of(lists, ranker.channels, union, (scaled, scores), ranker.item_popularity)
    # Where one channel alone answers, as for a visitor without a history, its own order is the best there is.
    answers = np.sum([candidates.rows[:, 0] >= 0 for candidates in lists.values()], axis=0)
    several = answers[union.query[first.members]] > 1
    return reordered(scores, first.members[several], ranker.scores(first.features[several]))


def reordered(scores: FloatArray, members: IntArray, chances: FloatArray) -> FloatArray:
    """(U,) the scores with the members above all others, by their chances, equal ones by what they had."""
    rest = scores / (1.0 + scores)
    result = rest.copy()
    result[members] = 1.0 + (1.0 - _TIE) * chances + _TIE * rest[members]
    return result.astype(np.float32)


def fit_ranker(
    channels: tuple[str, ...], features: FloatArray, wanted: FloatArray, popularity: FloatArray
) -> Ranker | None:
    """Grow the trees.

    Args:
        channels: The columns of the features.
        features: (n, 3 C + 2) of candidates of validation queries.
        wanted: (n,) 1 for what was looked for, else 0.
        popularity: (N,) of the items, see `log_popularity`; of length 0 where the features have none.

    Returns:
        None where nothing was looked for or nothing else was found: there is nothing to learn.
    """
    import lightgbm

    if not 0 < wanted.sum() < len(wanted):
        return None
    data = lightgbm.Dataset(features, wanted, params={"max_bin": _SETTINGS["max_bin"], "verbosity": -1})
    booster = lightgbm.train(_SETTINGS, data, _TREES)
    return Ranker(channels=channels, trees=booster.model_to_string(), popularity=_packed(popularity))


def log_popularity(counts: IntArray) -> FloatArray:
    """(N,) logarithm of 1 + events, in the steps that a stored ranker keeps."""
    return _from_steps(_steps(np.log1p(counts.astype(np.float64))))


def _steps(popularity: Numbers | FloatArray) -> npt.NDArray[np.uint8]:
    return np.minimum(np.rint(popularity * _POPULARITY_STEPS), 255).astype(np.uint8)


def _from_steps(steps: npt.NDArray[np.uint8]) -> FloatArray:
    popularity: FloatArray = (steps / _POPULARITY_STEPS).astype(np.float32)
    return popularity


def _packed(popularity: FloatArray) -> str:
    if not len(popularity):
        return ""
    return base64.b64encode(zlib.compress(_steps(popularity).tobytes())).decode()


@lru_cache(maxsize=8)
def _unpacked(text: str) -> FloatArray:
    if not text:
        return np.zeros(0, np.float32)
    return _from_steps(np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8))


@lru_cache(maxsize=16)
def _booster(trees: str) -> Any:
    import lightgbm

    return lightgbm.Booster(model_str=trees)
