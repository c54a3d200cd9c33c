"""Plots of a search and of a Pareto front, drawn as the report's are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recsys_ray.evaluation.plots import ACCENT, COLOURS, INK, LINE, MUTED, Bar, bars, panel, svg

_BOX = (0.17, 0.2, 0.79, 0.71)
_HEIGHT = 235


@dataclass(frozen=True)
class Dot:
    """One dot: where it is, whether it is on the front, and whether it is the chosen one."""

    x: float
    y: float
    strong: bool
    ringed: bool


def by_trial(values: Mapping[int, float], metric: str, title: str) -> str:
    """The metric of each finished trial by its number, and the best so far as a line."""

    def draw(figure: Any) -> None:
        axes = _titled(figure, metric)
        numbers = sorted(values)
        best = np.maximum.accumulate([values[number] for number in numbers])
        axes.step(numbers, best, where="post", color=ACCENT, linewidth=2)
        axes.plot(numbers, [values[number] for number in numbers], "o", color=MUTED, markersize=6)
        winner = max(values, key=lambda number: values[number])
        axes.plot([winner], [values[winner]], "o", color=ACCENT, markersize=8)
        axes.plot([winner], [values[winner]], "o", color=ACCENT, markersize=15, fillstyle="none")
        axes.set_xlabel("trial")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.08, y=0.15)

    return svg(draw, _HEIGHT, title)


def by_epoch(curves: Sequence[tuple[Mapping[int, float], bool, bool]], metric: str, title: str) -> str:
    """The metric by epoch, a line a trial.

    Args:
        curves: Epoch to value, whether it is the best trial, and whether it was stopped: then a cross ends the line.
        metric: Its name.
        title: For people who cannot see it.
    """

    def draw(figure: Any) -> None:
        axes = _titled(figure, metric)
        for values, best, stopped in sorted(curves, key=lambda curve: curve[1]):
            colour = ACCENT if best else MUTED
            epochs = list(values)
            # A single epoch is no line.
            marker = {"marker": "o", "markersize": 3}
            axes.plot(epochs, list(values.values()), color=colour, linewidth=2.4 if best else 1, **marker)
            if stopped:
                axes.plot([epochs[-1]], [values[epochs[-1]]], "x", color=COLOURS[1], markersize=8, markeredgewidth=2)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.margins(x=0.06, y=0.12)

    return svg(draw, _HEIGHT, title)


def by_setting(pairs: Sequence[tuple[Any, float]], order: Sequence[Any] | None, log: bool, metric: str) -> str:
    """The metric against one setting.

    Args:
        pairs: The setting's value and the metric of each trial.
        order: The values from left to right where they are names, None where they are numbers.
        log: Whether numbers stand on a logarithmic axis.
        metric: Its name.
    """

    def draw(figure: Any) -> None:
        axes = _titled(figure, metric)
        best = max(value for _, value in pairs)
        for setting, value in pairs:
            x = setting if order is None else list(order).index(setting)
            strong = value == best
            axes.plot([x], [value], "o", color=ACCENT if strong else MUTED, markersize=8 if strong else 6)
        if order is not None:
            axes.set_xticks(range(len(order)), [str(one) for one in order])
            axes.set_xlim(-0.5, len(order) - 0.5)
        elif log:
            _log_ticks(axes, [float(setting) for setting, _ in pairs])
        axes.margins(x=0.08, y=0.15)

    return svg(draw, _HEIGHT, f"{metric} by setting")


def importance_bars(shares: Mapping[str, float]) -> str:
    """How much each setting decided."""
    rows = [Bar(path, share, ACCENT, f"{100 * share:.0f}%") for path, share in shares.items()]
    return bars(rows, "importance of each setting")


def front_plot(dots: Sequence[Dot], x_label: str, metric: str, target: tuple[float | None, float | None]) -> str:
    """The metric against a cost on a logarithmic axis; those on the front stand out, the chosen one is ringed.

    Args:
        dots: Every configuration.
        x_label: What the cost is.
        metric: What stands upwards.
        target: The largest cost and the least metric that were asked for, None where none was.
    """

    def draw(figure: Any) -> None:
        axes = _titled(figure, metric)
        weak, strong = ([dot for dot in dots if dot.strong is kind] for kind in (False, True))
        axes.plot([dot.x for dot in weak], [dot.y for dot in weak], "o", color=MUTED, markersize=4, alpha=0.6)
        axes.plot([dot.x for dot in strong], [dot.y for dot in strong], "o", color=ACCENT, markersize=6)
        for dot in dots:
            if dot.ringed:
                axes.plot([dot.x], [dot.y], "o", color=COLOURS[1], markersize=14, fillstyle="none", markeredgewidth=2)
        limit, least = target
        if limit is not None:
            axes.axvline(limit, color=COLOURS[1], linewidth=1, linestyle="--")
        if least is not None:
            axes.axhline(least, color=COLOURS[1], linewidth=1, linestyle="--")
        _log_ticks(axes, [dot.x for dot in dots])
        axes.set_xlabel(x_label)
        axes.margins(x=0.08, y=0.1)

    return svg(draw, _HEIGHT, f"{metric} against {x_label}")


def _titled(figure: Any, metric: str) -> Any:
    axes = panel(figure, _BOX)
    axes.set_title(metric, loc="left", fontsize=11, x=-0.2, color=INK)
    axes.spines["left"].set_color(LINE)
    return axes


def _log_ticks(axes: Any, values: Sequence[float]) -> None:
    axes.set_xscale("log")
    low, high = min(values), max(values)
    ticks = np.geomspace(low, high, 4) if high > 1.05 * low else [low]
    axes.set_xticks(ticks, [short(tick) for tick in ticks])
    axes.xaxis.set_minor_formatter("")


def short(value: float) -> str:
    """A number in few digits: 0.0042, 3.1, 240, 12k, 3.4M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1000 if unit == 'k' else size):.3g}{unit}"
    return f"{value:.2g}" if abs(value) < 100 else f"{value:.0f}"
