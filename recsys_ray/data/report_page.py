"""The page of the data report: one self-contained HTML file with inline SVG plots."""

import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from recsys_ray.core.arrays import IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_BLUE, _RED, _GREY = "#2f6db5", "#c0504d", "#8a8f98"

_MOST_REASONS = 8

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Data report</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #f5f6f8; margin: 0; }
 main { max-width: 1020px; margin: 0 auto; padding: 28px 20px 60px; }
 h1 { font-size: 26px; margin: 0 0 2px; } h2 { font-size: 17px; margin: 0 0 10px; }
 .sub { color: #667; margin: 0 0 20px; }
 .tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; margin-bottom: 16px; }
 .tile, section { background: #fff; border: 1px solid #e2e5ea; border-radius: 8px; }
 .tile { padding: 12px 16px; } .tile b { display: block; font-size: 22px; } .tile span { color: #667; font-size: 13px; }
 .grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 16px; margin-bottom: 16px; }
 section { padding: 16px 18px; margin-bottom: 16px; overflow-x: auto; } .grid section { margin: 0; }
 svg { width: 100%; height: auto; display: block; }
 table { border-collapse: collapse; width: 100%; font-size: 14px; }
 th, td { text-align: left; padding: 5px 10px 5px 0; border-bottom: 1px solid #eceef2; vertical-align: top; }
 td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
 .warn { background: #fff7e0; border-color: #ecd9a0; } p { margin: 6px 0; } .note { color: #667; font-size: 13.5px; }
</style></head><body><main>
<h1>Data report</h1>
<p class="sub">Split: {{ r.protocol }}{% if r.time %} · events from {{ r.time.first[:10] }} to
 {{ r.time.last[:10] }}{% else %} · no dates: timestamps are positions{% endif %}</p>
<div class="tiles">
{% for label, value in tiles %}<div class="tile"><b>{{ value }}</b><span>{{ label }}</span></div>
{% endfor %}</div>
{% for warning in r.warnings %}<section class="warn"><b>Warning.</b> {{ warning }}</section>{% endfor %}
<div class="grid">
{% for title, note, svg in plots %}<section><h2>{{ title }}</h2>{{ svg }}<p class="note">{{ note }}</p></section>
{% endfor %}</div>
<section><h2>Rows by source</h2><table>
<tr><th>Source</th><th class="n">Came</th><th class="n">Kept</th><th class="n">Rejected</th><th>Reasons</th></tr>
{% for source, row in r.rows.items() %}<tr><td>{{ source }}</td><td class="n">{{ row["in"] | n }}</td>
<td class="n">{{ row.kept | n }}</td><td class="n">{{ (row["in"] - row.kept) | n }}</td>
<td>{{ row.rejected | listed }}</td></tr>
{% endfor %}</table><p class="note">Every rejected row is in rejected.parquet with its line and reason.</p></section>
<section><h2>Folds</h2><table>
<tr><th class="n">Fold</th><th class="n">Train events</th><th class="n">Validation queries</th>
<th class="n">Test queries</th>
<th class="n">Test targets</th><th class="n">of items never trained on</th><th class="n">New users in test</th></tr>
{% for fold in r.folds %}<tr><td class="n">{{ loop.index }}</td><td class="n">{{ fold.train_events | n }}</td>
<td class="n">{{ fold.validation_queries | n }}</td><td class="n">{{ fold.test_queries | n }}</td>
<td class="n">{{ fold.test_targets | n }}</td><td class="n">{{ fold.test_cold_targets | n }}</td>
<td class="n">{{ fold.test_new_users | n }}</td></tr>{% endfor %}</table></section>
<section><h2>What each catalogue field is used for</h2><table><tr><th>Use</th><th>Fields</th></tr>
{% for use in ("text", "categorical", "numeric", "vectors") %}<tr><td>{{ use }}</td>
<td>{{ r.fields[use] | join(", ") or "none" }}</td></tr>{% endfor %}
<tr><td>ignored</td><td>{{ r.fields.ignored | listed }}</td></tr>
</table><p class="note">{{ r.tokens | n }} attribute values of items and
 {{ r.user_tokens | n }} of users became tokens.</p></section>
</main></body></html>
"""


def render_page(figures: dict[str, Any], item_counts: IntArray, events_per_user: IntArray) -> str:
    """The whole page.

    Args:
        figures: What `report.describe` returned.
        item_counts: (N,) events of each item.
        events_per_user: (U,) events of each user.
    """
    from markupsafe import Markup

    plots = [
        ("Popularity", _popularity_note(figures), _draw(lambda axes: _popularity(axes, item_counts))),
        ("Events per user", _user_note(figures), _draw(lambda axes: _per_user(axes, events_per_user))),
        ("Items without a modality", _missing_note(figures), _draw(lambda axes: _missing(axes, figures))),
        ("Rejected rows", _rejected_note(figures), _draw(lambda axes: _rejected(axes, figures))),
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    environment.filters["n"] = "{:,}".format
    environment.filters["listed"] = _listed
    page: str = environment.from_string(_TEMPLATE).render(
        r=figures, tiles=_tiles(figures), plots=[(title, note, Markup(svg)) for title, note, svg in plots]
    )
    return page


def _listed(entries: dict[str, Any]) -> str:
    shown = (f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}" for name, value in entries.items())
    return ", ".join(shown) or "none"


def _tiles(figures: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("users", f"{figures['users']:,}"),
        ("items", f"{figures['items']:,}"),
        ("events", f"{figures['events']:,}"),
        ("of all user-item pairs", f"{100 * figures['density']:.3g} %"),
        ("events repeat a pair", f"{figures['repeated_pairs']:,}"),
        ("rows rejected", f"{sum(row['in'] - row['kept'] for row in figures['rows'].values()):,}"),
    ]


def _popularity_note(figures: dict[str, Any]) -> str:
    popularity = figures["popularity"]
    return (
        f"The most popular tenth of the items has {popularity['share_of_events']['top_10_percent']:.0%} of the events "
        f"(Gini {popularity['gini']:.2f}); {popularity['items_without_events']:,} items have none."
    )


def _user_note(figures: dict[str, Any]) -> str:
    per_user = figures["events_per_user"]
    return (
        f"Median {per_user['median']:,.0f}, a tenth has at most {per_user['p10']:,.0f}, "
        f"a tenth at least {per_user['p90']:,.0f}."
    )


def _missing_note(figures: dict[str, Any]) -> str:
    return f"Of {figures['items']:,} items. An item that lacks one is described by the others."


def _rejected_note(figures: dict[str, Any]) -> str:
    count = len(_reasons(figures))
    if count > _MOST_REASONS:
        return f"By source and reason, the {_MOST_REASONS} most frequent of {count}."
    return "By source and reason." if count else "Every row was kept."


def _draw(plot: "Callable[[Axes], None]") -> str:
    """One plot as an SVG element; the same figures give the same text."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "data report", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, 3.0), layout="constrained")
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        plot(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _popularity(axes: "Axes", counts: IntArray) -> None:
    ranked = np.sort(counts[counts > 0])[::-1]
    axes.loglog(np.arange(1, len(ranked) + 1), ranked, color=_BLUE, linewidth=2)
    _plain_numbers(axes.xaxis, 1, len(ranked))
    _plain_numbers(axes.yaxis, int(ranked.min(initial=1)), int(ranked.max(initial=1)))
    axes.set_xlabel("item, most popular first")
    axes.set_ylabel("events")
    axes.grid(alpha=0.25)


def _per_user(axes: "Axes", per_user: IntArray) -> None:
    top = max(int(per_user.max(initial=1)), 2)
    low = int(per_user.min(initial=top))
    edges = np.unique(np.round(np.geomspace(low, top + 1, 30)).astype(np.int64))
    axes.hist(per_user, bins=(edges - 0.5).tolist(), color=_BLUE, edgecolor="white", linewidth=0.5)
    axes.set_xscale("log")
    if top < 2 * low:
        axes.set_xlim(low / 2, top * 2)
    _plain_numbers(axes.xaxis, low, top)
    axes.set_xlabel("events of a user")
    axes.set_ylabel("users")


def _missing(axes: "Axes", figures: dict[str, Any]) -> None:
    names = list(figures["missing"])[::-1]
    values = [100.0 * figures["missing"][name] / max(figures["items"], 1) for name in names]
    _bars(axes, names, values, [f"{value:.1f} %" for value in values], _GREY)
    axes.set_xlim(0, 118)
    axes.set_xlabel("share of items, %")


def _rejected(axes: "Axes", figures: dict[str, Any]) -> None:
    from matplotlib.ticker import MaxNLocator

    reasons = sorted(_reasons(figures), key=lambda entry: entry[1])[-_MOST_REASONS:]
    if not reasons:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "none", ha="center", va="center", color=_GREY, fontsize=14, transform=axes.transAxes)
        return
    values = [float(count) for _, count in reasons]
    _bars(axes, [name for name, _ in reasons], values, [f"{value:,.0f}" for value in values], _RED)
    axes.set_xlim(0, max(values) * 1.25)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_xlabel("rows")


def _reasons(figures: dict[str, Any]) -> list[tuple[str, int]]:
    return [
        (f"{source}: {reason}", count)
        for source, row in figures["rows"].items()
        for reason, count in row["rejected"].items()
    ]


def _plain_numbers(axis: "Axis", low: int, high: int) -> None:
    """Label a logarithmic axis 1, 10, 100, with 2 and 5 between where it spans little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if high > 100 * max(low, 1) else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else ""))
    axis.set_minor_formatter(NullFormatter())


def _bars(axes: "Axes", names: list[str], values: list[float], labels: list[str], colour: str) -> None:
    bars = axes.barh(names, values, color=colour, height=0.6)
    axes.bar_label(bars, labels=labels, padding=4, fontsize=9)
    axes.tick_params(axis="y", length=0)
