"""Final losses against the weight λ of the smoothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..results.rows import Row
from ..results.sensitivity import LOSSES, ByWeight, by_weight
from ..results.statistics import Interval
from .series import draw_intervals, legend_below, looks, plain_numbers, ticks_at
from .style import GREY, Look, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Losses at the end of training against the weight λ of the smoothing: of the weights rounded to nearest (RTN), of "
    "their randomized rounding (RR), and of the float weights. Geometric means over seeds; bars are 95 % t intervals "
    "without the differences between instances that all share (Cousineau's normalisation with Morey's correction), "
    "for comparing points. Where the smallest possible loss is above zero, it is subtracted. At each λ the learning "
    "rate with the lowest mean RTN loss among those that were run. λ = 1 (thin line) is the smoothed loss itself; "
    "horizontal lines are methods without λ. Each panel has its own scale."
)


def figure_lambda(rows: Iterable[Row]) -> Figure:
    """One row of panels per problem and format: RTN, RR and float loss against λ, a line per variant of the method.

    Raises ValueError where no method was trained with several weights.
    """
    groups = by_weight(rows)
    if not groups:
        raise ValueError("rows: no problem and format was trained with several weights λ ('weight' of the method)")
    style = looks(label for found in groups.values() for label in _labels(found))
    with styled():
        figure, axes = new_figure(len(groups), 3, 0.35 + 2.1 * len(groups), sharex=True)
        for row, ((problem, format), found) in zip(axes, groups.items(), strict=True):
            for ax, (metric, name) in zip(row, LOSSES, strict=True):
                _draw(ax, found.weighted[metric], found.fixed[metric], style)
                panel(ax, list(axes.flat).index(ax), f"{name} loss")
                plain_numbers(ax.yaxis)
            row[0].set_ylabel("\n".join([*wrap(problem, 28), format, "final loss"]), fontsize=8)
        for ax in axes[-1]:
            ax.set_xlabel("weight λ")
        legend_below(figure, axes.flat)
    return figure


def _labels(found: ByWeight) -> list[str]:
    return [label for part in (found.weighted, found.fixed) for lines in part.values() for label in lines]


def _draw(
    ax: Any, weighted: Mapping[str, Mapping[float, Interval]], fixed: Mapping[str, Interval], style: Mapping[str, Look]
) -> None:
    for label, line in weighted.items():
        draw_intervals(ax, list(line), list(line.values()), style[label])
    for label, level in fixed.items():
        ax.axhline(level.value, color=style[label].color, ls=(0, (6, 2)), lw=1.2, label=label, zorder=2)
        if level.low is not None and level.high is not None:
            ax.axhspan(level.low, level.high, color=style[label].color, alpha=0.1, lw=0, zorder=1)
    ax.axvline(1.0, color=GREY, lw=0.7, zorder=1)
    ax.set(xscale="log", yscale="log")
    ticks_at(ax.xaxis, sorted({w for line in weighted.values() for w in line}), most=5)
