"""Whether a learned ranker puts the merged list into a better order: fitted and judged on validation, never on test."""

from dataclasses import dataclass

import numpy as np

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray, Ragged
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.fusion import Fusion, FusionConfig
from recsys_ray.retrieval.ranker import First, Ranker, first_of, fit_ranker, reordered
from recsys_ray.retrieval.tuning import Problem, problem_of
from recsys_ray.retrieval.union import scaled_scores

LEAST_GAIN = 1.01
"""By this factor at least the objective must be better on queries that the ranker was not fitted on."""
_LEAST_QUERIES = 200  # fewer say nothing about trees
_FOLDS = 2


@dataclass(frozen=True)
class Known:
    """What is known of items and channels beside the lists.

    Attributes:
        popularity: (N,) of the items for these queries, see `log_popularity`; of length 0 where it is not one for all.
        impersonal: Channels that answer everybody alike. A place in their list names an item, so trees do not read it.
    """

    popularity: FloatArray
    impersonal: frozenset[str] = frozenset()


def add_ranker(
    fusion: Fusion,
    lists: dict[str, Candidates],
    targets: Ragged,
    config: FusionConfig,
    known: Known,
) -> Fusion:
    """The same fusion, with a ranker where the configuration wants one and where it is better.

    "auto" fits it on half of the queries and judges it on the other half, both ways; the one that is kept is fitted on
    all of them.

    Args:
        fusion: Method and weights.
        lists: Channel to its candidates for Q validation queries.
        targets: (Q) what each should find.
        config: See `FusionConfig`.
        known: What else the trees may read.
    """
    channels = tuple(name for name in lists if name not in known.impersonal)
    least = _LEAST_QUERIES if config.ranker == "auto" else 1
    if config.ranker is False or not channels or len(targets) < least:
        return fusion
    problem = problem_of(lists, targets, fusion)
    scores = (np.array([fusion.weights[name] for name in lists]) @ problem.features).astype(np.float32)
    scaled = scaled_scores(lists, problem.union, fusion.temperatures)
    first = first_of(lists, channels, problem.union, (scaled, scores), known.popularity)
    lesson = _Lesson(
        channels, first.features, _wanted(problem, first), problem.union.query[first.members], known.popularity
    )
    if config.ranker == "auto":
        chances = lesson.chances_unseen()
        if chances is None or not _is_better(problem, scores, reordered(scores, first.members, chances), config):
            return fusion
    ranker = lesson.fit(np.ones(len(lesson.wanted), bool))
    return fusion if ranker is None else fusion.model_copy(update={"ranker": ranker})


@dataclass(frozen=True)
class _Lesson:
    """What there is to learn from: n candidates, the first of each query's merged list.

    Attributes:
        channels: Those whose lists the features describe.
        features: (n, 3 C + 2), see `First`.
        wanted: (n,) 1 for what the query should find.
        query: (n,) the query of each.
        popularity: (N,) what the features hold of it.
    """

    channels: tuple[str, ...]
    features: FloatArray
    wanted: FloatArray
    query: IntArray
    popularity: FloatArray

    def fit(self, mask: BoolArray) -> Ranker | None:
        """A ranker from the candidates under a mask; queries that found nothing teach nothing."""
        found = np.bincount(self.query, self.wanted) > 0
        kept = mask & found[self.query]
        return fit_ranker(self.channels, self.features[kept], self.wanted[kept], self.popularity)

    def chances_unseen(self) -> FloatArray | None:
        """(n,) chances by rankers that have not seen the candidate's query; None where one could not be fitted."""
        chances = np.zeros(len(self.wanted), np.float32)
        for fold in range(_FOLDS):
            held_out = self.query % _FOLDS == fold
            ranker = self.fit(~held_out)
            if ranker is None:
                return None
            chances[held_out] = ranker.scores(self.features[held_out])
        return chances


def _wanted(problem: Problem, first: First) -> FloatArray:
    """(n,) 1 for the candidates that are targets."""
    is_target = np.zeros(len(problem.union.row), np.float32)
    is_target[problem.target_member] = 1.0
    return is_target[first.members]


def _is_better(problem: Problem, before: FloatArray, after: FloatArray, config: FusionConfig) -> bool:
    """Whether the objective gains enough, and by more than two standard errors of the difference by query."""
    was, now = (problem.values_of(scores, config.objective) for scores in (before, after))
    gain = now - was
    return bool(gain.mean() > (LEAST_GAIN - 1) * was.mean() and gain.mean() > 2 * gain.std() / np.sqrt(len(gain)))
