"""Fusion weights chosen on validation, never on test: a coordinate search over the union of the channels' lists."""

from collections.abc import Iterator
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
        starts = (fusion, self._best_alone(fusion))
        best, fusion = max((self._weigh(start) for start in starts), key=lambda pair: pair[0])
        for name in list(fusion.temperatures):
            for value in self.config.temperatures[name][1:]:
                other = fusion.model_copy(update={"temperatures": {**fusion.temperatures, name: value}})
                score, tried = self._weigh(other)
                if score > best:
                    best, fusion = score, tried
        return best, fusion

    def _best_alone(self, fusion: Fusion) -> Fusion:
        """All weight on the channel that does best without the others."""
        problem, names = problem_of(self.lists, self.targets, fusion), list(self.lists)
        values = [problem.value(alone, self.config.objective) for alone in np.eye(len(names))]
        best = names[int(np.argmax(values))]
        return fusion.model_copy(update={"weights": {name: float(name == best) for name in names}})

    def _weigh(self, fusion: Fusion) -> tuple[float, Fusion]:
        """Coordinate search over the weights from where `fusion` stands."""
        problem = problem_of(self.lists, self.targets, fusion)
        names = list(self.lists)
        weights = np.array([fusion.weights[name] for name in names])
        best = problem.value(weights, self.config.objective)
        for _ in range(self.config.rounds):
            improved = False
            for place in range(len(names)):
                for candidate in _neighbours(weights, place):
                    value = problem.value(candidate, self.config.objective)
                    if value > best + 1e-9:
                        best, weights, improved = value, candidate, True
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
        features: (U, C) float32 what each channel gives each distinct candidate, before its weight.
        found: (F,) which of the P (query, target) pairs are in any list.
        target_member: (F,) the distinct candidate that is the target of each found pair.
        members: (n,) the distinct candidates of each found pair's query, end to end.
        starts: (F,) where each pair's begin.
        compared: (n, C) the features of the members.
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
        """The objective's weighted mean for a weighted sum."""
        if not weights.any():
            return -1.0
        theirs = self.compared @ weights.astype(np.float32)
        of_targets = self.starts + self.target_member - self.members[self.starts] if len(self.starts) else self.starts
        return float(self._values(theirs[of_targets], theirs, objective).mean())

    def values_of(self, scores: FloatArray, objective: dict[str, float]) -> Numbers:
        """(Q,) the objective for (U,) scores of the distinct candidates, ties at their mean rank."""
        return self._values(scores[self.target_member], scores[self.members], objective)

    def _values(self, own: FloatArray, theirs: FloatArray, objective: dict[str, float]) -> Numbers:
        ranks = np.full(len(self.pair_query), np.inf)
        if len(own):
            mine = np.repeat(own, np.diff(np.append(self.starts, len(theirs))))
            above = np.add.reduceat(theirs > mine, self.starts, dtype=np.int64)
            ties = np.add.reduceat(theirs == mine, self.starts, dtype=np.int64) - 1
            ranks[self.found] = above + ties / 2
        values = [
            share * metrics.METRICS[name](ranks, self.pair_query, self.num_queries) for name, share in objective.items()
        ]
        return np.asarray(np.sum(values, axis=0) / max(sum(objective.values()), 1e-12), np.float64)


def problem_of(lists: dict[str, Candidates], targets: Ragged, fusion: Fusion) -> Problem:
    """What is to be solved for these lists."""
    union = unite(lists)
    features = np.zeros((len(union.row), len(lists)), np.float32)
    features[union.member, union.channel] = contributions(lists, union, fusion)
    pair_query = targets.row_of_value
    span = int(max(union.row.max(initial=0), targets.values.max(initial=0))) + 1
    keys, wanted = union.query * span + union.row, pair_query * span + targets.values
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    found = np.flatnonzero(keys[place] == wanted) if len(keys) else np.zeros(0, np.int64)
    first = np.searchsorted(union.query, np.arange(len(targets) + 1))
    sizes = np.diff(first)[pair_query[found]]
    starts = np.cumsum(sizes) - sizes
    members = np.arange(sizes.sum()) + np.repeat(first[pair_query[found]] - starts, sizes)
    return Problem(union, features, found, place[found], members, starts, features[members], pair_query, len(targets))


def _neighbours(weights: Numbers, place: int) -> Iterator[Numbers]:
    """The weights with one of them changed."""
    options = [weights[place] * factor for factor in _FACTORS] if weights[place] > 0 else [*_BIRTH]
    for value in options:
        changed = weights.copy()
        changed[place] = value
        if changed.max() > 0:
            yield changed


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
