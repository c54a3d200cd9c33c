"""The page of a Pareto search."""

from collections.abc import Callable, Sequence

from recsys_ray.evaluation.contents import Section
from recsys_ray.evaluation.page import Headline, Plot, percent, render_template
from tune.front import Point, Target
from tune.measure import BLOCKS, QUERIES, Measured
from tune.plots import Dot, front_plot, short
from tune.results import Group
from tune.study import METRIC


def render(points: Sequence[Point], kept: Sequence[Point], target: Target, chosen: str | None) -> str:
    """The whole page.

    Args:
        points: All that were measured.
        kept: The front, with fused metrics.
        target: What was asked for.
        chosen: The id of the configuration that meets it, None where none does.
    """
    found = next((point for point in kept if point.id == chosen), None)
    verdict = (
        f"Nothing meets the target ({target})." if found is None else f"The cheapest that meets {target}: {found.id}."
    )
    lead = (
        f"{len(points)} configurations of towers, length of vectors and index were measured on the events held back "
        f"for validation; {len(kept)} are not beaten by another in recall, latency and size at once. {verdict}"
    )
    return render_template(
        "page.html.jinja",
        package="tune",
        title="What recall costs",
        lead=lead,
        headlines=[] if found is None else _headlines(found),
        groups=[_plots(points, kept, target, found)],
        table=front_section(kept),
    )


def front_section(kept: Sequence[Point]) -> Section:
    """The front as a table."""
    rows = tuple(
        (
            point.id,
            point.text,
            point.measured.recall,
            point.fused.get(METRIC),
            point.fused.get("recall@100"),
            f"{point.measured.p50_ms:.2f}",
            f"{point.measured.p95_ms:.2f}",
            point.measured.searched_bytes,
            f"{point.measured.searched_bytes / point.measured.num_items:.0f}",
            point.measured.encoder_bytes,
            point.measured.disk_bytes,
        )
        for point in kept
    )
    columns = (
        "id",
        "settings",
        "recall@100",
        f"fused {METRIC}",
        "fused recall@100",
        "p50 ms",
        "p95 ms",
        "index bytes",
        "bytes an item",
        "encoder bytes",
        "on disk",
    )
    text = (
        "recall@100 is that of the towers' own list; the fused metrics are those of the whole run with it. Index "
        "bytes: the file that a search reads through; on disk stand also the vectors that results are scored with and "
        "histories are read with."
    )
    return Section("The front", text, columns, rows)


def _headlines(found: Point) -> list[Headline]:
    measured = found.measured
    size = f"{short(measured.searched_bytes)} of the index, {short(measured.encoder_bytes)} of the encoder"
    return [
        Headline("recall@100", percent(measured.recall), "of the towers' list, on validation"),
        Headline("p95", f"{measured.p95_ms:.2f} ms", "of one query, encoded and searched"),
        Headline("bytes", short(measured.num_bytes), size),
    ]


def _plots(points: Sequence[Point], kept: Sequence[Point], target: Target, found: Point | None) -> Group:
    names = {point.id for point in kept}

    def dots(cost: Callable[[Measured], float]) -> list[Dot]:
        return [
            Dot(cost(one.measured), one.measured.recall, one.id in names, found is not None and one.id == found.id)
            for one in points
        ]

    metric = "recall@100"
    text = (
        "Each dot is a configuration; the blue ones are the front, the ringed one is chosen, dashed lines the target. "
        f"Latencies: {BLOCKS} blocks of {QUERIES} single queries each, in which the configurations took turns; the "
        "median of the blocks."
    )
    by_time = front_plot(
        dots(lambda m: m.p95_ms), "p95 milliseconds a query", metric, (target.max_p95_ms, target.min_recall)
    )
    by_size = front_plot(
        dots(lambda m: float(m.num_bytes)), "bytes of index and encoder", metric, (target.max_bytes, target.min_recall)
    )
    plots = (
        Plot("Recall against latency", "Further left is faster.", by_time),
        Plot("Recall against size", "Further left is smaller.", by_size),
    )
    return Group("The front", text, plots)
