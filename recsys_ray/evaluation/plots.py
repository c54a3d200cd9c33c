"""The report's plots as inline SVG. Text and lines take their colours from the page, so that they follow dark mode."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_ray.evaluation.bootstrap import Interval
from recsys_ray.evaluation.contents import IndexRow, TrainingCurve

# Stand-ins in the drawing, replaced by the page's own colours once it is text.
INK, MUTED, LINE = "#010203", "#040506", "#070809"
_PAGE_COLOURS = {INK: "currentColor", MUTED: "var(--muted)", LINE: "var(--line)"}
ACCENT = "#3b76e8"
COLOURS = ("#12968a", "#c2730c", "#9a55d9", "#d8477f", "#6f9417", "#7b8794", "#cf4a3a", "#1f8fb5")
_WIDTH = 300  # points; the page shows a plot about this wide, so that text stays readable on a phone
_FONT = 11
_STYLE = {
    "svg.fonttype": "none",  # real text: sharp, selectable, in the page's font
    "svg.hashsalt": "report",  # the same input gives the same file
    "font.size": _FONT,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
}


@dataclass(frozen=True)
class Bar:
    """One bar: its name, its length, its colour, the text at its end, and its interval if it has one."""

    label: str
    value: float
    colour: str
    text: str
    interval: Interval | None = None


def channel_colours(names: Sequence[str], fused: str) -> dict[str, str]:
    """One colour a channel, the same in every plot of a report."""
    channels = sorted(name for name in names if name != fused)
    colours = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(channels)}
    return {fused: ACCENT, **colours}


def bars(rows: Sequence[Bar], title: str, limit: float | None = None) -> str:
    """Horizontal bars, each under its name; those below 0 grow to the left.

    Args:
        rows: From the top.
        title: For people who cannot see it.
        limit: The value at full width, to make several plots comparable; None takes the largest.
    """
    ends = [max(row.value, row.interval[1] if row.interval else row.value, 0.0) for row in rows]
    least = min([0.0, *(min(row.value, row.interval[0] if row.interval else row.value) for row in rows)])
    full = limit or max([*ends, 1e-12])
    width = full - least

    def draw(figure: Any) -> None:
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        # More than a fifth of the width is left for the text at the end of the longest bar.
        axes.set_xlim(least, least + width * 1.32)
        axes.set_ylim(len(rows) - 0.1, -0.1)
        for line, (row, end) in enumerate(zip(rows, ends, strict=True)):
            axes.text(least, line + 0.27, row.label, va="center", ha="left")
            axes.barh(line + 0.66, row.value, height=0.34, color=row.colour)
            if least < 0:
                axes.plot([0, 0], [line + 0.46, line + 0.86], color=MUTED, linewidth=1)
            if row.interval:
                axes.plot(row.interval, [line + 0.66] * 2, color=INK, linewidth=1.2, solid_capstyle="butt")
            axes.text(end + width * 0.02, line + 0.68, row.text, va="center", ha="left", color=INK)

    return svg(draw, 34 * len(rows) + 4, title)


def index_scatter(rows: Sequence[IndexRow], title: str) -> str:
    """Recall against milliseconds a query, the chosen index ringed."""

    def draw(figure: Any) -> None:
        axes = panel(figure, (0.17, 0.2, 0.79, 0.71))
        for row in rows:
            x, y = _milliseconds(row), row.recall
            colour = ACCENT if row.chosen else MUTED
            axes.plot([x], [y], "o", color=colour, markersize=9 if row.chosen else 6)
            if row.chosen:
                axes.plot([x], [y], "o", color=colour, markersize=16, fillstyle="none")
        axes.set_xscale("log")
        axes.set_xlabel("milliseconds a query (further left is faster)")
        axes.set_title(f"recall of the exact top {rows[0].k}", loc="left", fontsize=_FONT, x=-0.2)
        low = min(row.recall for row in rows)
        axes.set_ylim(max(0.0, low - 0.1 * max(1 - low, 0.05)), 1.0 + 0.12 * max(1 - low, 0.05))
        milliseconds = [_milliseconds(row) for row in rows]
        ticks = np.geomspace(min(milliseconds), max(milliseconds), 4)
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.xaxis.set_minor_formatter("")

    return svg(draw, 250, title)


def _milliseconds(row: IndexRow) -> float:
    return 1000 / max(row.queries_per_s, 1e-9)


def training_plot(curve: TrainingCurve, title: str) -> str:
    """Loss and validation metric by epoch, one above the other, the best epoch marked."""
    panels = [("training loss", curve.loss, COLOURS[1])]
    if curve.validation:
        panels.append((f"validation {curve.metric}", curve.validation, ACCENT))
    height = 135 * len(panels) + 25

    def draw(figure: Any) -> None:
        for index, (name, values, colour) in enumerate(panels):
            bottom = (height - 135 * (index + 1)) / height
            axes = panel(figure, (0.17, bottom + 12 / height, 0.79, 90 / height))
            axes.plot(range(1, len(values) + 1), values, color=colour, linewidth=2, marker="o", markersize=4)
            axes.set_title(name, loc="left", fontsize=_FONT, x=-0.2)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.margins(y=0.2)
            if name.startswith("validation"):
                best = max(range(len(values)), key=lambda epoch: values[epoch])
                axes.plot([best + 1], [values[best]], "o", color=colour, markersize=13, fillstyle="none")
            if index == len(panels) - 1:
                axes.set_xlabel("epoch")

    return svg(draw, height, title)


def panel(figure: Any, box: tuple[float, float, float, float]) -> Any:
    """Axes at (left, bottom, width, height), shares of the figure."""
    axes = figure.add_axes(box)
    axes.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def svg(draw: Any, height: float, title: str) -> str:
    """Draw on a figure of our own (no pyplot, no global state kept) and return an SVG that can stand in a page.

    Args:
        draw: Fills the figure; in `INK`, `MUTED` and `LINE` it takes the page's own colours.
        height: Points; every plot is equally wide.
        title: For people who cannot see it.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        figure.patch.set_visible(False)
        draw(figure)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same ids in every figure; nothing refers to them
    for stand_in, colour in _PAGE_COLOURS.items():
        text = text.replace(stand_in, colour)
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{_escape(title)}">',
        text,
        count=1,
    )
    return text.strip()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
