"""Why a candidate is in a fused list: the channels it came from, and what each of them added."""

from dataclasses import dataclass

from recsys_ray.retrieval.fusion import Fused


@dataclass(frozen=True)
class Source:
    """One channel's part in one candidate.

    Attributes:
        channel: Its name.
        rank: Place in the channel's own list, from 1.
        score: The channel's own score.
        share: What it added to the fused score.
    """

    channel: str
    rank: int
    score: float
    share: float


def explain(fused: Fused, query: int, place: int) -> list[Source]:
    """The sources of the candidate at one place of one query's list, from 0; the largest share first."""
    found = [
        Source(
            name,
            int(fused.ranks[query, place, column]) + 1,
            float(fused.scores[query, place, column]),
            float(fused.shares[query, place, column]),
        )
        for column, name in enumerate(fused.channels)
        if fused.ranks[query, place, column] >= 0
    ]
    return sorted(found, key=lambda source: (-source.share, source.rank, source.channel))
