"""Fusion: the channels' lists merged into one. Pure; serving and evaluation call the same `combine`."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, ValidationError, field_validator

from recsys_ray.core.arrays import FloatArray, IntArray
from recsys_ray.core.config import Config
from recsys_ray.core.errors import ArtifactError, ConfigError
from recsys_ray.core.metrics import METRICS
from recsys_ray.retrieval.candidates import Candidates
from recsys_ray.retrieval.exploration import Exploration, ExplorationConfig, with_quota
from recsys_ray.retrieval.ranker import Ranker, reorder
from recsys_ray.retrieval.union import Numbers, Union, best_first, mean_ranks, scaled_scores, unite

Method = Literal["reciprocal_rank", "weighted"]
DEFAULT_TEMPERATURES: dict[str, tuple[float, ...]] = {"nearest": (0.05, 0.1, 0.2, 0.4)}
DEFAULT_OBJECTIVE = {"recall@10": 1.0, "ndcg@10": 1.0, "recall@100": 1.0}


class FusionConfig(Config):
    """How lists are merged.

    Attributes:
        method: "reciprocal_rank" sums weight / (rrf_k + rank), equal scores at their mean rank (Cormack et al. 2009);
            "weighted" sums weight times the channel's scaled score; "auto" takes the one that does better on
            validation, and "weighted" where weights are given.
        rrf_k: The constant of reciprocal rank.
        depth: Candidates that each channel gives.
        weights: Channel to weight; null chooses them on validation.
        temperatures: For "weighted": channels whose scores are scaled by exp((score - best) / T) instead of division
            by the best score, to the T that are tried on validation (the first where weights are given).
        objective: What the weights are chosen for: metric to its share.
        max_queries: Weights are chosen on at most this many validation queries.
        rounds: Passes over the channels of the coordinate search at most.
        ranker: Whether gradient-boosted trees put the best of the merged list into a better order; "auto" when they do
            better on validation queries that they were not fitted on.
        exploration: Places that are kept for new items.
    """

    method: Literal["auto", "reciprocal_rank", "weighted"] = "auto"
    rrf_k: float = Field(60.0, ge=0)
    depth: int = Field(200, ge=1, le=10_000)
    weights: dict[str, float] | None = None
    temperatures: dict[str, Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]] = Field(
        default_factory=lambda: dict(DEFAULT_TEMPERATURES),
    )
    objective: dict[str, float] = Field(default_factory=lambda: dict(DEFAULT_OBJECTIVE))
    max_queries: int = Field(10_000, ge=1)
    rounds: int = Field(4, ge=1)
    ranker: Literal["auto"] | bool = "auto"
    exploration: ExplorationConfig = ExplorationConfig()

    @field_validator("objective")
    @classmethod
    def _objective_of_metrics(cls, objective: dict[str, float]) -> dict[str, float]:
        if set(objective) - set(METRICS) or min(objective.values(), default=0) < 0 or not any(objective.values()):
            raise ValueError(f"shares of at least 0, one of them above, of {', '.join(METRICS)}")
        return objective


class Fusion(Config):
    """A finished fusion: nothing is left to choose.

    Attributes:
        method: See `FusionConfig`.
        rrf_k: See `FusionConfig`.
        depth: Candidates that each channel gives.
        weights: Channel to weight, for every channel.
        temperatures: Channel to T, for those scaled by exp((score - best) / T).
        ranker: Reorders the best of the merged list; None leaves them as they are.
        exploration: Keeps places for new items; None keeps none.
        chosen_on: What the weights come from, for people.
    """

    method: Method = "reciprocal_rank"
    rrf_k: float = Field(60.0, ge=0)
    depth: int = Field(200, ge=1)
    weights: dict[str, float]
    temperatures: dict[str, float] = Field(default_factory=dict)
    ranker: Ranker | None = None
    exploration: Exploration | None = None
    chosen_on: str = ""

    @classmethod
    def equal(cls, channels: list[str], depth: int) -> Self:
        """Reciprocal rank with equal weights: needs no validation."""
        return cls(weights=dict.fromkeys(channels, 1.0), depth=depth, chosen_on="equal weights")

    @property
    def silent(self) -> frozenset[str]:
        """The channels whose candidates add nothing to any list; a ranker hears all that it was fitted with."""
        known = () if self.ranker is None else self.ranker.channels
        return frozenset(name for name, weight in self.weights.items() if weight == 0 and name not in known)

    def only(self, channels: Iterable[str]) -> Self:
        """The same without the other channels."""
        weights = {name: self.weights[name] for name in channels}
        temperatures = {name: value for name, value in self.temperatures.items() if name in weights}
        return self.model_copy(update={"weights": weights, "temperatures": temperatures})

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ArtifactError: When the file is missing or not a fusion.
        """
        try:
            return cls.model_validate_json(path.read_text())
        except (OSError, ValidationError, json.JSONDecodeError) as error:
            raise ArtifactError(f"{path} cannot be read: {error}") from None


@dataclass(frozen=True)
class Fused:
    """The merged lists, and where each candidate came from.

    Attributes:
        candidates: (B, K) best first. Equal scores: the one with the better best rank first, then the lower row.
        channels: The C channels that gave lists.
        ranks: (B, K, C) rank from 0 in each channel's list, -1 where the channel does not have it.
        scores: (B, K, C) the channel's own score, minus infinity where it does not have it.
        shares: (B, K, C) what the channel adds to the weighted sum, which is the fused score where no ranker reorders.
    """

    candidates: Candidates
    channels: tuple[str, ...]
    ranks: IntArray
    scores: FloatArray
    shares: FloatArray

    def sources(self, query: int, places: Sequence[int]) -> list[dict[str, int]]:
        """Channel to rank from 0, for some candidates of a query, best rank first."""
        ranks = self.ranks[query, places].tolist()
        found = [
            sorted((rank, name) for rank, name in zip(of_one, self.channels, strict=True) if rank >= 0)
            for of_one in ranks
        ]
        return [{name: rank for rank, name in pairs} for pairs in found]


def combine(lists: dict[str, Candidates], fusion: Fusion, k: int) -> Fused:
    """Merge the channels' lists of B queries.

    Args:
        lists: Channel to its candidates, all for the same B queries. A channel that was late may be missing.
        fusion: Method and weights.
        k: How many to keep.

    Raises:
        ConfigError: When there is no list, or the fusion has no weight for a channel.
    """
    names = tuple(lists)
    _require_weights(names, fusion)
    union = unite(lists)
    counts = contributions(lists, union, fusion)
    parts = np.array([fusion.weights[name] for name in names])[union.channel] * counts
    scores = np.bincount(union.member, parts, minlength=len(union.row)).astype(np.float32)
    if fusion.ranker is not None:
        scores = reorder(lists, union, scaled_scores(lists, union, fusion.temperatures), scores, fusion.ranker)
    order, place = _places(union, scores, k, fusion.exploration)
    num_queries = len(lists[names[0]])
    result = Candidates.empty(num_queries, k)
    result.rows[union.query[order], place] = union.row[order]
    result.scores[union.query[order], place] = scores[order]
    return _with_sources(union, order, place, parts, result, names)


def contributions(lists: dict[str, Candidates], union: Union, fusion: Fusion) -> Numbers:
    """(E,) what each list entry counts before its channel's weight."""
    if fusion.method == "weighted":
        return scaled_scores(lists, union, fusion.temperatures)
    ranks = np.concatenate([mean_ranks(candidates.scores) for candidates in lists.values()], axis=1)
    counts: Numbers = 1.0 / (fusion.rrf_k + ranks[union.query[union.member], union.column] + 1.0)
    return counts


def _places(union: Union, scores: FloatArray, k: int, exploration: Exploration | None) -> tuple[IntArray, IntArray]:
    """The distinct candidates that are kept, and the place of each in its list."""
    if exploration is None:
        return best_first(union, scores, k)
    order, _ = best_first(union, scores, len(union.row))
    chosen, place = with_quota(union.query[order], exploration.is_new(union.row[order]), k, exploration.share)
    return order[chosen], place


def _require_weights(names: tuple[str, ...], fusion: Fusion) -> None:
    if not names:
        raise ConfigError("fusion", "no list", "the list of at least one channel")
    for name in names:
        if name not in fusion.weights:
            raise ConfigError(f"fusion.weights.{name}", None, f"a weight; known are {', '.join(fusion.weights)}")


def _with_sources(
    union: Union, order: IntArray, place: IntArray, parts: Numbers, result: Candidates, names: tuple[str, ...]
) -> Fused:
    shape = (*result.rows.shape, len(names))
    ranks, scores, shares = (
        np.full(shape, -1, np.int64),
        np.full(shape, -np.inf, np.float32),
        np.zeros(shape, np.float32),
    )
    place_of = np.full(len(union.row), -1)
    place_of[order] = place
    entry_place = place_of[union.member]
    kept = entry_place >= 0
    where = (union.query[union.member[kept]], entry_place[kept], union.channel[kept])
    ranks[where] = union.rank[kept]
    scores[where] = union.score[kept]
    shares[where] = parts[kept]
    return Fused(result, names, ranks, scores, shares)
