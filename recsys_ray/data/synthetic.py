"""A seeded catalogue with users, texts, attributes, pictures and sequential structure, for tests and benchmarks.

Items belong to taste clusters that show in their words, attributes, pictures and vectors. A user likes two clusters and
walks through them: often on to the item that follows the last one, else to a popular item of a liked cluster. So
content, co-visitation and sequence models can all learn something, and popularity alone cannot.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recsys_ray.core.arrays import IntArray
from recsys_ray.data.sources import DataConfig

Rng = np.random.Generator
Text = npt.NDArray[np.str_]

_CLUSTERS = 8
_FOLLOW = 0.6  # probability that the next event is the follower of the last item
_START_S = 1_700_000_000
_THEMES = ("ocean", "forest", "city", "desert", "winter", "garden", "rocket", "castle")
_WORDS = (
    "red",
    "blue",
    "green",
    "silver",
    "golden",
    "quiet",
    "loud",
    "small",
    "large",
    "modern",
    "classic",
    "soft",
    "bright",
    "dark",
    "warm",
    "cold",
    "fast",
    "slow",
    "plain",
    "rich",
    "round",
    "long",
    "short",
    "fresh",
    "deep",
    "light",
    "new",
    "old",
    "wild",
    "calm",
)


def make_synthetic(
    directory: Path,
    users: int = 200,
    items: int = 120,
    events_per_user: int = 12,
    seed: int = 0,
    images: bool = False,
    vectors: int = 0,
) -> DataConfig:
    """Write items.parquet, users.parquet, events.parquet (and images/) and return the configuration that reads them.

    Args:
        directory: Created when absent.
        users: How many users; every one has events.
        items: How many items.
        events_per_user: Events of each user, at distinct times.
        seed: The same seed and sizes give the same files.
        images: Whether items get 32 by 32 pictures in the colour of their cluster; every tenth has none.
        vectors: Length of a precomputed vector column `audio`; 0 for none. Every tenth item has none.
    """
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    clusters = rng.integers(0, _CLUSTERS, items)
    pq.write_table(_catalogue(rng, clusters, directory if images else None, vectors), directory / "items.parquet")
    liked = rng.integers(0, _CLUSTERS, (users, 2))
    pq.write_table(_users(rng, liked), directory / "users.parquet")
    pq.write_table(_events(rng, clusters, liked, events_per_user), directory / "events.parquet")
    return DataConfig(
        items=str(directory / "items.parquet"),
        events=str(directory / "events.parquet"),
        users=str(directory / "users.parquet"),
    )


def item_id(row: int) -> str:
    """The external id of the synthetic item of a row."""
    return f"i{row}"


def _catalogue(rng: Rng, clusters: IntArray, pictures_below: Path | None, vectors: int) -> pa.Table:
    theme = np.array(_THEMES)[clusters]
    word = _cluster_words(rng, clusters)
    other = np.array(_WORDS)[rng.integers(0, len(_WORDS), len(clusters))]
    columns: dict[str, pa.Array] = {
        "item_id": pa.array([item_id(row) for row in range(len(clusters))]),
        "title": pa.array([f"{a} {b} {c} {row}" for row, (a, b, c) in enumerate(zip(word, other, theme, strict=True))]),
        "description": _with_gaps([f"A {a} thing of the {b}." for a, b in zip(word, theme, strict=True)]),
        "category": pa.array(theme.tolist()),
        "tags": pa.array([[str(a), str(b)] for a, b in zip(word, other, strict=True)]),
        "price": pa.array(np.round(rng.lognormal(2.0 + clusters * 0.2, 0.3), 2)),
    }
    if pictures_below is not None:
        columns["image"] = _with_gaps(_pictures(rng, clusters, pictures_below))
    if vectors:
        centres = rng.normal(size=(_CLUSTERS, vectors))
        noisy = centres[clusters] + 0.5 * rng.normal(size=(len(clusters), vectors))
        columns["audio"] = _with_gaps(list(noisy.astype(np.float32)))
    return pa.table(columns)


def _with_gaps(values: list[Any]) -> pa.Array:
    """Every tenth item lacks the value."""
    return pa.array([None if row % 10 == 9 else value for row, value in enumerate(values)])


def _cluster_words(rng: Rng, clusters: IntArray) -> Text:
    """A word an item; each cluster prefers three of them."""
    preferred = clusters * 3 + rng.integers(0, 3, len(clusters))
    anything = rng.integers(0, len(_WORDS), len(clusters))
    return np.array(_WORDS)[np.where(rng.random(len(clusters)) < 0.8, preferred, anything)]


def _pictures(rng: Rng, clusters: IntArray, directory: Path) -> list[str]:
    (directory / "images").mkdir(exist_ok=True)
    colours = np.random.default_rng(7).integers(40, 216, (_CLUSTERS, 3))
    names = []
    for row, cluster in enumerate(clusters):
        noise = rng.integers(-30, 30, (32, 32, 3))
        pixels = (colours[cluster] + noise).clip(0, 255).astype(np.uint8)
        names.append(f"images/{item_id(row)}.jpg")
        Image.fromarray(pixels).save(directory / names[-1], quality=90)
    return names


def _users(rng: Rng, liked: IntArray) -> pa.Table:
    count = len(liked)
    return pa.table(
        {
            "user_id": [f"u{row}" for row in range(count)],
            "favourite": np.array(_THEMES)[liked[:, 0]].tolist(),
            "age": rng.choice([18, 25, 35, 50], count),
        }
    )


def _events(rng: Rng, clusters: IntArray, liked: IntArray, length: int) -> pa.Table:
    users, walk = len(liked), np.empty((len(liked), length), np.int64)
    members = _Members.of(clusters)
    current = members.popular(rng, liked[:, 0])
    for step in range(length):
        follow = (rng.random(users) < _FOLLOW) & (step > 0)
        fresh = members.popular(rng, liked[np.arange(users), rng.integers(0, 2, users)])
        current = np.where(follow, members.follower[current], fresh)
        walk[:, step] = current
    seconds = (
        _START_S
        + rng.integers(0, 86_400 * 200, users)[:, None]
        + np.cumsum(rng.integers(60, 86_400, (users, length)), axis=1)
    )
    order = np.argsort(seconds.ravel(), kind="stable")
    user_ids, item_ids = (
        pa.array([f"{letter}{row}" for row in range(n)]) for letter, n in (("u", users), ("i", len(clusters)))
    )
    return pa.table(
        {
            "user_id": user_ids.take(pa.array(np.repeat(np.arange(users), length)[order])),
            "item_id": item_ids.take(pa.array(walk.ravel()[order])),
            "timestamp": seconds.ravel()[order],
            "kind": pa.array(["view", "purchase"]).take(pa.array((rng.random(users * length) < 0.1).astype(np.int64))),
        }
    )


@dataclass(frozen=True)
class _Members:
    """The items of each cluster, most popular first, and the item that follows each item."""

    sorted_items: IntArray
    starts: IntArray
    counts: IntArray
    follower: IntArray

    @classmethod
    def of(cls, clusters: IntArray) -> "_Members":
        ordered = np.argsort(clusters, kind="stable")
        counts = np.bincount(clusters, minlength=_CLUSTERS)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        follower = np.empty(len(clusters), np.int64)
        for start, count in zip(starts, counts, strict=True):
            inside = ordered[start : start + count]
            follower[inside] = np.roll(inside, -1)
        return cls(ordered, starts, counts, follower)

    def popular(self, rng: Rng, cluster: IntArray) -> IntArray:
        """A random item of each given cluster, early members far more often (about Zipf)."""
        size = np.where(self.counts[cluster] > 0, self.counts[cluster], len(self.sorted_items))
        start = np.where(self.counts[cluster] > 0, self.starts[cluster], 0)
        place = (np.exp(rng.random(len(cluster)) * np.log(size + 1)) - 1).astype(np.int64)
        chosen: IntArray = self.sorted_items[start + np.minimum(place, size - 1)]
        return chosen
