"""What each modality of an item is worth: the towers asked with part of what they know of the items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from recsys_ray.core.arrays import BoolArray, FloatArray, IntArray
from recsys_ray.core.metrics import RankArray, mean_ranks, novelty
from recsys_ray.embedding.encode import embed_items
from recsys_ray.encoders.inputs import ItemInputs
from recsys_ray.encoders.two_tower import TwoTower
from recsys_ray.evaluation.contents import Section
from recsys_ray.evaluation.questions import Questions
from recsys_ray.evaluation.replay import BUCKETS, SHOWN, Replay, block_size, pool, popularity_buckets
from recsys_ray.evaluation.sections import points
from recsys_ray.evaluation.settings import EvaluationConfig
from recsys_ray.evaluation.summary import difference, per_query, scores_of
from recsys_ray.retrieval.candidates import top_k
from recsys_ray.retrieval.query_encoder import TowerQueryEncoder

ALL = "all"
METRICS = ("recall@10", "recall@100")
_SPACE = "towers, in part"
_BATCH = 4096


@dataclass(frozen=True)
class View:
    """What the item tower makes of the catalogue when it is shown some modalities alone.

    Attributes:
        vectors: (N, D).
        known: (N,) the items that have one of them.
    """

    vectors: FloatArray
    known: BoolArray


@dataclass(frozen=True)
class ByModality:
    """Where the targets stand by each modality alone, and by all together.

    Attributes:
        replay: Its rankings are the modalities, and `ALL`.
        items: The same names to how many items of the catalogue have the modality.
    """

    replay: Replay
    items: dict[str, int]


def modalities_of(model: TwoTower, inputs: ItemInputs) -> tuple[str, ...]:
    """The modalities that the item tower reads and the catalogue has."""
    return tuple(name for name in model.item_tower.names if name in inputs.present)


def by_modality(model: TwoTower, inputs: ItemInputs, questions: Questions, config: EvaluationConfig) -> ByModality:
    """Rank the whole catalogue exactly by the towers, with each modality alone and with all of them.

    What an item lacks is hidden in histories and candidates alike: an item without the modality is no candidate, and
    no event of a history.

    Args:
        model: The trained towers, in evaluation mode.
        inputs: What the item tower reads of the N items.
        questions: What is asked.
        config: Block size and bucket limits.
    """
    names = modalities_of(model, inputs)
    ranks: dict[str, RankArray] = {}
    shown: dict[str, IntArray] = {}
    items: dict[str, int] = {}
    for label, some in {**{name: (name,) for name in names}, ALL: names}.items():
        view = _view(model, inputs.only(*some))
        ranks[label], shown[label] = _rank(model, view, questions, config)
        items[label] = int(view.known.sum())
    targets, counts = questions.targets, questions.train_counts
    done = Replay(
        targets.users,
        targets.new_users,
        targets.items.row_of_value,
        targets.items.values,
        popularity_buckets(counts, config)[targets.items.values],
        ranks,
        shown,
        {name: novelty(rows, SHOWN, counts) for name, rows in shown.items()},
        len(counts),
    )
    return ByModality(done, items)


def modality_sections(folds: Sequence[ByModality], config: EvaluationConfig) -> list[Section]:
    """The tables of the report: what each finds, by popularity of the target, and whether together they find more.

    None where there is one modality alone.
    """
    if len(folds[-1].items) <= 2:
        return []
    done, items = pool([fold.replay for fold in folds]), folds[-1].items
    parts = _parts(done)
    text = (
        f"A sample of {done.num_queries:,} test questions, put to the towers with a part of what they know of the "
        "items, in histories and candidates alike. The columns are of hidden items of different popularity."
    )
    heads = ("shown of each item", "items", *(f"{name}, n = {len(part.queries):,}" for name, part in parts.items()))
    scores = [scores_of(part, config) for part in parts.values()]
    alone = [
        Section(
            f"What each modality finds: {metric}",
            text,
            heads,
            tuple((name, count, *(one[name].values[metric] for one in scores)) for name, count in items.items()),
        )
        for metric in METRICS
    ]
    return [*alone, _together(parts, config)]


def _view(model: TwoTower, inputs: ItemInputs) -> View:
    known = torch.stack(list(inputs.present.values())).any(0).numpy()
    return View(embed_items(model, inputs, _BATCH), known)


def _rank(model: TwoTower, view: View, questions: Questions, config: EvaluationConfig) -> tuple[RankArray, IntArray]:
    """(T,) ranks of the targets, and (Q, 10) the first items."""
    encoder = TowerQueryEncoder(model, view.vectors, _SPACE, lambda _: None)
    size = block_size(1, SHOWN, len(view.vectors), config)
    blocks = [_rank_block(encoder, view, questions.slice(at, at + size)) for at in range(0, len(questions), size)]
    ranks = np.concatenate([np.zeros(0), *(ranks for ranks, _ in blocks)])
    return ranks, np.concatenate([np.zeros((0, SHOWN), np.int64), *(shown for _, shown in blocks)])


def _rank_block(encoder: TowerQueryEncoder, view: View, questions: Questions) -> tuple[RankArray, IntArray]:
    queries, items = questions.queries(), questions.targets.items
    readable = replace(queries, history=queries.history.where(view.known[queries.history.values]))
    vectors = encoder.encode(readable)[_SPACE]
    scores: FloatArray = vectors @ view.vectors.T
    scores[:, ~view.known] = -np.inf
    scores[~vectors.any(1)] = -np.inf
    queries.mask_excluded(scores)
    return mean_ranks(scores, items.values, items.row_of_value), top_k(scores, SHOWN).rows


def _parts(done: Replay) -> dict[str, Replay]:
    """All targets, and those of each popularity bucket that has any."""
    parts = {name: done.select(done.buckets == place) for place, name in enumerate(BUCKETS)}
    return {ALL: done, **{name: part for name, part in parts.items() if part.num_queries}}


def _together(parts: Mapping[str, Replay], config: EvaluationConfig) -> Section:
    return Section(
        "Whether the modalities find more together",
        "All together against the one that finds most alone, on the same questions, in points; ± is half of the 95% "
        "interval.",
        ("hidden items", "metric", "best alone", "it finds", "all find", "all minus best", "verdict"),
        tuple((name, metric, *_gain(part, metric, config)) for metric in METRICS for name, part in parts.items()),
    )


def _gain(part: Replay, metric: str, config: EvaluationConfig) -> tuple[str | float, ...]:
    values = {name: per_query(part, name, metric) for name in part.ranks}
    together = values.pop(ALL)
    best = max(values, key=lambda name: float(values[name].mean()))
    gain = difference(together, values[best], part.users, config)
    low, high = gain.ci95
    verdict = "more" if low > 0 else "less" if high < 0 else "too close to call"
    return best, float(values[best].mean()), float(together.mean()), points(gain), verdict
