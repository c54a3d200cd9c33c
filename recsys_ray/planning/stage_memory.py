"""Bytes of the stages beside training: features, embedding, index, channels, evaluation, serving."""

from collections.abc import Callable, Iterator
from typing import Any

from recsys_ray.config import RunConfig
from recsys_ray.index.spec import candidates
from recsys_ray.planning.index_bytes import formula, index_bytes, vectors_bytes
from recsys_ray.planning.memory import Kind, Line, Need, Sizes, needs_of
from recsys_ray.planning.skeleton import skeleton
from recsys_ray.planning.training_memory import count_parameters, item_bytes, modalities, train_needs
from recsys_ray.retrieval.channels.counting import BLOCK_CELLS

_ENTRY = 4 + 4  # column and value of a sparse table
_POINTER = 8
_RUNTIME = 600_000_000  # a Python process with torch, Ray and FAISS loaded


def plan_memory(config: RunConfig, sizes: Sizes) -> list[Need]:
    """What each process of each stage needs at its peak, in the order of the run."""
    nearest = any(one is not None and one.kind == "nearest" for one in config.channels.values())
    needs = _features(config, sizes)
    if nearest:
        needs += train_needs(config, sizes) + _embed(config, sizes) + _index(config, sizes)
    return [*needs, *_channels(config, sizes), *_evaluate(config, sizes), *_serve(config, sizes)]


def _features(config: RunConfig, sizes: Sizes) -> list[Need]:
    needs: list[Need] = []
    on: Kind = "gpu" if config.embedding.gpus else "host"
    for name, one in modalities(config).items():
        if one.trained:
            continue
        shape = skeleton(one)
        # Nothing is saved for a backward pass: two layers' results live at a time.
        batch = one.batch_size * 2 * shape.layer_bytes
        table = 2 * 4 * shape.features * sizes.items
        lines: list[tuple[Kind, Line]] = [
            (on, Line("weights", 6 * shape.parameters, f"(4 + 2) B x {shape.parameters:,}")),
            (on, Line("batch", batch, f"{one.batch_size} x 2 layers x {shape.layer_bytes / 1e6:.1f} MB")),
        ]
        needs += needs_of(f"features: {name}", "actor", lines)
        text = f"2 x 4 B x {shape.features} x {sizes.items:,}: the cache as it is read, and the table"
        needs += needs_of(f"features: {name}", "driver", [("host", Line("features", table, text))])
    return needs


def _embed(config: RunConfig, sizes: Sizes) -> list[Need]:
    on: Kind = "gpu" if config.embedding.gpus else "host"
    held = count_parameters(config, sizes).held
    each, why = item_bytes(config, sizes)
    batch, width = config.embedding.batch_size, config.model.width
    trained = [skeleton(one) for one in modalities(config).values() if one.trained]
    live = batch * (each + sum(2 * one.layer_bytes for one in trained))
    lines: list[tuple[Kind, Line]] = [
        (on, Line("towers", 4 * held, f"4 B x {held:,}")),
        (on, Line("batch", live, f"embedding.batch_size {batch}: inputs and two layers' results")),
    ]
    inputs = Line("item inputs", each * sizes.items, f"{sizes.items:,} x ({why}) B")
    vectors = Line("vectors", 2 * 4 * width * sizes.items, f"2 x 4 B x {width} x {sizes.items:,}")
    return [
        *needs_of("embed", "actor", lines),
        *needs_of("embed", "driver", [("host", inputs), ("host", vectors)]),
    ]


def _index(config: RunConfig, sizes: Sizes) -> list[Need]:
    width = config.model.width
    factory = _largest_factory(config, sizes)
    lines: list[tuple[Kind, Line]] = [
        ("host", _vectors(config, sizes)),
        ("host", Line(f"largest: {factory}", index_bytes(factory, sizes.items, width), formula(factory))),
    ]
    return needs_of("index", "driver", lines)


def _largest_factory(config: RunConfig, sizes: Sizes) -> str:
    """The largest index that is built: of those that are tried, or the one that is given."""
    settings = config.index
    if settings.factory != "auto":
        return settings.factory
    names = [name for name, _ in candidates(sizes.items, config.model.width, settings.k)]
    return max(names, key=lambda name: index_bytes(name, sizes.items, config.model.width))


def _vectors(config: RunConfig, sizes: Sizes) -> Line:
    width = config.model.width
    return Line("vectors", vectors_bytes(sizes.items, width), f"4 B x {width} x {sizes.items:,}")


def table_bytes(rows: int, entries: float) -> float:
    """A sparse table in CSR form."""
    return _POINTER * (rows + 1) + _ENTRY * entries


def _pairs(sizes: Sizes, a_user: float) -> float:
    """Distinct pairs of items at most, where each event meets so many others."""
    return min(sizes.events * a_user, float(sizes.items) ** 2)


def _item_table(one: Any, sizes: Sizes, met: float) -> tuple[Line, Line]:
    kept = min(_pairs(sizes, met), sizes.items * float(one.neighbours or sizes.items))
    table = Line(
        "table", table_bytes(sizes.items, kept), f"{_ENTRY} B x {kept:,.0f} pairs + {_POINTER} B x {sizes.items:,}"
    )
    cells = min(float(BLOCK_CELLS), _pairs(sizes, met))
    return table, Line("block while counting", 3 * _ENTRY * cells, f"3 x {_ENTRY} B x {cells:,.0f} pairs")


def _counted(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    return _item_table(one, sizes, 2.0 * one.window if "window" in type(one).model_fields else sizes.mean_events)


def _ease(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    table, block = _item_table(one, sizes, sizes.mean_events)
    dense = 4.0 * sizes.items**2
    if dense <= one.memory_bytes:
        return table, block, Line("dense inverse", dense, f"4 B x {sizes.items:,}^2, in place")
    local = sizes.items * one.regressors
    return (
        table,
        block,
        Line("local regressions", 2 * _ENTRY * local, f"the inverse's {dense / 1e9:.1f} GB exceed memory_bytes"),
    )


def _factors(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    rows = sizes.items + sizes.users
    seen = Line(
        "who met what, both ways", 2 * table_bytes(sizes.users, sizes.events), f"2 x {_ENTRY} B x {sizes.events:,}"
    )
    return Line("factors", 2.0 * 4 * one.dim * rows, f"2 x 4 B x {one.dim} x {rows:,} items and users"), seen


def _user_knn(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    return (
        Line("postings, histories", 3 * table_bytes(sizes.users, sizes.events), f"3 x {_ENTRY} B x {sizes.events:,}"),
    )


def _words(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    return (Line("TF-IDF", table_bytes(sizes.items, 60.0 * sizes.items), f"{_ENTRY} B x 60 words x {sizes.items:,}"),)


def _counts(one: Any, sizes: Sizes) -> tuple[Line, ...]:
    return (Line("counts", 2 * 8 * sizes.items, f"2 x 8 B x {sizes.items:,}"),)


_CHANNELS: dict[str, Callable[[Any, Sizes], tuple[Line, ...]]] = {
    "co_visitation": _counted,
    "item_knn": _counted,
    "rp3beta": _counted,
    "ease": _ease,
    "matrix_factorisation": _factors,
    "graph_embedding": _factors,
    "user_knn": _user_knn,
    "content": _words,
    "popularity": _counts,
    "recent": _counts,
    "trending": _counts,
}


def _channels(config: RunConfig, sizes: Sizes) -> Iterator[Need]:
    for name, one in config.channels.items():
        if one is not None and one.kind != "nearest":
            lines: list[tuple[Kind, Line]] = [("host", line) for line in _CHANNELS[one.kind](one, sizes)]
            yield from needs_of(f"channel: {name}", "worker", lines)


def _kept(config: RunConfig, sizes: Sizes) -> list[tuple[Kind, Line]]:
    """What a loaded release holds: the first line of each channel is what it keeps."""
    lines: list[tuple[Kind, Line]] = []
    for name, one in config.channels.items():
        if one is None:
            continue
        if one.kind == "nearest":
            factory = _largest_factory(config, sizes)
            size = index_bytes(factory, sizes.items, config.model.width)
            lines += [("host", _vectors(config, sizes)), ("host", Line(f"{name}: {factory}", size, formula(factory)))]
            continue
        first = _CHANNELS[one.kind](one, sizes)[0]
        lines.append(("host", Line(f"{name}: {first.what}", first.num_bytes, first.formula)))
    return lines


def _evaluate(config: RunConfig, sizes: Sizes) -> list[Need]:
    block = config.evaluation.block_bytes
    scores = max(2 * block, 8 * sizes.items)
    line = Line("scores", scores, f"2 x evaluation.block_bytes {block:,}, or one query's {sizes.items:,} items")
    return needs_of("evaluate", "worker", [*_kept(config, sizes), ("host", line)])


def _serve(config: RunConfig, sizes: Sizes) -> list[Need]:
    held = count_parameters(config, sizes).held
    backbones = sum(skeleton(one).parameters for one in modalities(config).values() if not one.trained)
    return needs_of(
        "serve",
        "replica",
        [
            *_kept(config, sizes),
            ("host", Line("towers and backbones", 4 * (held + backbones), f"4 B x {held + backbones:,}")),
            ("host", Line("catalogue fields", 500 * sizes.items, f"about 500 B x {sizes.items:,}")),
            ("host", Line("libraries", _RUNTIME, "Python, torch, Ray, FAISS")),
        ],
    )
