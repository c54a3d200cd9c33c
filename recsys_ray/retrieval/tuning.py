"""Fusion weights chosen on validation, never on test: a coordinate search over the union of the channels' lists."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_ray.core import metrics
from recsys_ray.core.arrays import FloatArray, IntArray, Ragged
from recsys_ray.core.errors import ConfigError
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.fusion import Fusion, FusionConfig, Method, contributions
from recsys_ray.retrieval.union import Numbers, Union, unite

_FACTORS = (0.0, 0.25, 0.5, 0.7, 0.85, 1.2, 1.4, 2.0, 4.0)
_BIRTH = (0.1, 0.25, 0.5, 1.0)  # what a channel at weight 0 is tried with
_MAX_PAIRS = 10_000


def tune(lists: dict[str, Candidates], targets: Ragged, config: FusionConfig) -> Fusion:
    """A fusion with the weights of the config, or with the best that the search finds; `add_ranker` comes after it.

    Args:
        lists: Channel to its candidates for Q validation queries, `config.depth` deep.
        targets: (Q) the item rows that each query should find.
        config: See `FusionConfig`.

    Raises:
        ConfigError: When given weights do not name the channels, or there is nothing to choose on.
    """
    if config.weights is not None:
        _require_names(config.weights, lists)
        return _start(config, "weighted" if config.method == "auto" else config.method, config.weights)
    if len(targets) == 0:
        raise ConfigError("fusion.weights", None, "a weight for each channel", "There is no validation to choose on.")
    search = _Search(*_sample(lists, targets, config.max_queries), config)
    methods: tuple[Method, ...] = ("weighted", "reciprocal_rank") if config.method == "auto" else (config.method,)
    found = [search.run(_start(config, method, dict.fromkeys(lists, 1.0))) for method in methods]
    best = max(found, key=lambda pair: pair[0])[1]
    return best.model_copy(update={"chosen_on": f"{len(search.targets)} validation queries"})


def _start(config: FusionConfig, method: Method, weights: dict[str, float]) -> Fusion:
    """A fusion with these weights, and the first of each channel's temperatures."""
    temperatures = {name: values[0] for name, values in config.temperatures.items() if name in weights}
    return Fusion(
        method=method,
        rrf_k=config.rrf_k,
        depth=config.depth,
        weights=weights,
        temperatures=temperatures if method == "weighted" else {},
        chosen_on="given",
    )


@dataclass(frozen=True)
class _Search:
    lists: dict[str, Candidates]
    targets: Ragged
    config: FusionConfig

    def run(self, fusion: Fusion) -> tuple[float, Fusion]:
        """Weights at the first temperatures; then, channel by channel, temperatures that do better.

        The search looks at one weight at a time, so from all channels alike it may never get to where one of them is
        nearly all (a list that is the same for everybody, in a catalogue with fashions): it starts from the best
        single channel too, and no mixture that is chosen is behind it.
        """
        problem = problem_of(self.lists, self.targets, fusion)
        starts = (fusion, self._best_alone(problem, fusion))
        best, fusion = max((self._weigh(problem, start) for start in starts), key=lambda pair: pair[0])
        for name in list(fusion.temperatures):
            for value in self.config.temperatures[name][1:]:
                other = fusion.model_copy(update={"temperatures": {**fusion.temperatures, name: value}})
                score, tried = self._weigh(problem_of(self.lists, self.targets, other), other)
                if score > best:
                    best, fusion = score, tried
        return best, fusion

    def _best_alone(self, problem: "Problem", fusion: Fusion) -> Fusion:
        """All weight on the channel that does best without the others."""
        names = list(self.lists)
        values = [problem.value(alone, self.config.objective) for alone in np.eye(len(names))]
        best = names[int(np.argmax(values))]
        return fusion.model_copy(update={"weights": {name: float(name == best) for name in names}})

    def _weigh(self, problem: "Problem", fusion: Fusion) -> tuple[float, Fusion]:
        """Coordinate search over the weights from where `fusion` stands."""
        names = list(self.lists)
        weights = np.array([fusion.weights[name] for name in names])
        best = problem.value(weights, self.config.objective)
        for _ in range(self.config.rounds):
            improved = False
            for place in range(len(names)):
                options = _options(weights, place)
                values = problem.values_along(weights, place, options, self.config.objective)
                if len(options) and values.max() > best + 1e-9:
                    weights[place], best, improved = options[int(values.argmax())], float(values.max()), True
            if not improved:
                break
        scaled = weights / weights.max()
        return best, fusion.model_copy(update={"weights": dict(zip(names, scaled.round(6).tolist(), strict=True))})


@dataclass(frozen=True)
class Problem:
    """The distinct candidates by channel, and where the targets are.

    Only queries that found a target are compared: weights change nothing for the others.

    Attributes:
        union: Of the lists.
        features: (C, U) float32 what each channel gives each distinct candidate, before its weight.
        found: (F,) which of the P (query, target) pairs are in any list.
        target_member: (F,) the distinct candidate that is the target of each found pair.
        members: (n,) the distinct candidates of each found pair's query, end to end.
        starts: (F,) where each pair's begin.
        compared: (C, n) the features of the members.
        pair_query: (P,) the query of each pair.
        num_queries: Q.
    """

    union: Union
    features: FloatArray
    found: IntArray
    target_member: IntArray
    members: IntArray
    starts: IntArray
    compared: FloatArray
    pair_query: IntArray
    num_queries: int

    def value(self, weights: Numbers, objective: dict[str, float]) -> float:
        """The objective's mean for a weighted sum; -1 where nothing has a weight."""
        return float(self.values_along(weights, 0, [float(weights[0])], objective)[0])

    def values_along(
        self, weights: Numbers, place: int, options: Sequence[float], objective: dict[str, float]
    ) -> Numbers:
        """The objective's mean for each of the weights that one channel may have, the others' as they are.

        Where only one weight moves, each member's distance to its target is a line in it: the sum over the channels
        is made once, not for every option.
        """
        others = weights.astype(np.float32)
        others[place] = 0
        ahead, slope = self._ahead(others @ self.compared), self._ahead(self.compared[place])
        moved = np.empty_like(ahead)  # one for all: the pages of so large an array take longer than what is done in it
        values = np.full(len(options), -1.0)
        for number, option in enumerate(options):
            if option or others.any():
                np.multiply(slope, np.float32(option), out=moved)
                np.add(moved, ahead, out=moved)
                values[number] = self._values(np.sign(moved, out=moved), objective).mean()
        return values

    def values_of(self, scores: FloatArray, objective: dict[str, float]) -> Numbers:
        """(Q,) the objective for (U,) scores of the distinct candidates, ties at their mean rank."""
        return self._values(np.sign(self._ahead(scores[self.members])), objective)

    def _ahead(self, theirs: FloatArray) -> FloatArray:
        """(n,) by how much each member is ahead of its pair's target."""
        if not len(self.starts):
            return theirs
        own = theirs[self.starts + self.target_member - self.members[self.starts]]
        return np.asarray(theirs - np.repeat(own, self._sizes), np.float32)

    @property
    def _sizes(self) -> IntArray:
        return np.diff(np.append(self.starts, len(self.members)))

    def _values(self, sides: FloatArray, objective: dict[str, float]) -> Numbers:
        """(Q,) the objective for (n,) 1 for each member above its target, -1 below, 0 for ties and the target."""
        ranks = np.full(len(self.pair_query), np.inf)
        if len(self.starts):
            # Those above less those below, plus all, is twice those above plus the ties, of which one is the target.
            ranks[self.found] = (np.add.reduceat(sides, self.starts) + self._sizes - 1) / 2
        values = [
            share * metrics.METRICS[name](ranks, self.pair_query, self.num_queries) for name, share in objective.items()
        ]
        return np.asarray(np.sum(values, axis=0) / max(sum(objective.values()), 1e-12), np.float64)


def problem_of(lists: dict[str, Candidates], targets: Ragged, fusion: Fusion) -> Problem:
    """What is to be solved for these lists."""
    union = unite(lists)
    features = np.zeros((len(lists), len(union.row)), np.float32)
    features[union.channel, union.member] = contributions(lists, union, fusion)
    pair_query = targets.row_of_value
    span = int(max(union.row.max(initial=0), targets.values.max(initial=0))) + 1
    keys, wanted = union.query * span + union.row, pair_query * span + targets.values
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = np.flatnonzero(keys[place] == wanted) if len(keys) else np.zeros(0, np.int64)
    first = np.searchsorted(union.query, np.arange(len(targets) + 1))
    sizes = np.diff(first)[pair_query[found]]
    starts = np.cumsum(sizes) - sizes
    members = np.arange(sizes.sum()) + np.repeat(first[pair_query[found]] - starts, sizes)
    return Problem(
        union, features, found, place[found], members, starts, features[:, members], pair_query, len(targets)
    )


def _options(weights: Numbers, place: int) -> list[float]:
    """What one of the weights is changed to; never all of them to 0."""
    if weights[place] == 0:
        return [*_BIRTH]
    alone = np.count_nonzero(weights) == 1
    return [float(weights[place]) * factor for factor in _FACTORS if factor > 0 or not alone]


def _sample(lists: dict[str, Candidates], targets: Ragged, max_queries: int) -> tuple[dict[str, Candidates], Ragged]:
    """At most `max_queries` queries, evenly spread, and fewer where they have very many targets."""
    mean_targets = max(1.0, len(targets.values) / max(len(targets), 1))
    count = max(1, min(len(targets), max_queries, int(_MAX_PAIRS / mean_targets)))
    rows = np.linspace(0, len(targets) - 1, count).astype(np.int64)
    taken = {name: Candidates(found.rows[rows], found.scores[rows]) for name, found in lists.items()}
    return taken, targets.take(rows)


def _require_names(weights: dict[str, float], lists: dict[str, Candidates]) -> None:
    if set(weights) != set(lists):
        raise ConfigError("fusion.weights", sorted(weights), f"exactly the channels: {', '.join(sorted(lists))}")
    if any(weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise ConfigError("fusion.weights", weights, "weights of at least 0, one of them above")
