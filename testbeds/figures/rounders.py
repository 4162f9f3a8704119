"""Rounding schemes against the exact optimum, as dimensions grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..results.rounders import by_dimension
from ..results.rows import Row, grouped
from ..results.statistics import Interval
from .series import Picture, dodged, draw_intervals, legend_below, looks, ticks_at
from .style import GREY, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Rounding schemes on instances whose best rounding is proven, against their dimension. Left: share of instances on "
    "which a scheme finds it, with 95 % Wilson intervals. Right: mean of its loss over the smallest "
    "possible one, with 95 % t intervals, on an axis that is logarithmic in how far it lies above 1. Names are in "
    "order of that mean over all instances, best first; points are moved apart sideways."
)


def pictures(experiment: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """A figure per format of the instances whose optimum is proven."""
    known = [r for r in rows if r["kind"] == "round" and r["metrics"].get("optimum") is not None]
    formats = grouped(known, lambda r: str(r["config"]["format"]))
    for format, mine in formats.items():
        yield Picture(figure_rounders(mine), (experiment, *([format] if len(formats) > 1 else [])), CAPTION)


def figure_rounders(rows: Iterable[Row], width: str = "d") -> Figure:
    """One row of panels per problem and format: share of optima found, and mean ratio to the optimum, against d.

    ``width``: the setting of the problem on the horizontal axis. Schemes that choose their own scales are left out:
    they have another optimum. Raises ValueError where no run has a known optimum.
    """
    order, lines = by_dimension(rows, width)
    style = looks(order)
    with styled():
        figure, axes = new_figure(len(lines), 2, 0.3 + 2.5 * len(lines), sharex="row")
        for row, ((problem, format), schemes) in zip(axes, lines.items(), strict=True):
            dimensions = sorted({d for line in schemes.values() for d in line})
            logarithmic = len(dimensions) > 1 and dimensions[-1] / dimensions[0] > 10
            for k, label in enumerate(order):
                lines_at = [schemes.get(label, {}).get(d) for d in dimensions]
                share = [None if line is None else line.optimal for line in lines_at]
                above = [None if line is None else _above_one(line.ratio) for line in lines_at]
                places = dodged(dimensions, k, len(order), logarithmic, min(0.5, 0.035 * len(order)))
                draw_intervals(row[0], places, share, style[label])
                draw_intervals(row[1], places, above, style[label])
            row[0].set(ylim=(-0.03, 1.03), ylabel="share of optima found")
            _ratio_axis(row[1])
            for ax in row:
                ax.set(xscale="log" if logarithmic else "linear", xlabel=f"dimension {width}")
                ticks_at(ax.xaxis, dimensions)
                panel(ax, list(axes.flat).index(ax), f"{problem}, {format}")
        legend_below(figure, axes.flat)
    return figure


def _above_one(ratio: Interval | None) -> Interval | None:
    """Mean of ratio - 1, which cannot be negative, and so neither can the ends of its interval."""
    if ratio is None:
        return None
    low, high = (None if end is None else max(0.0, end - 1) for end in (ratio.low, ratio.high))
    return Interval(max(0.0, ratio.value - 1), low, high, ratio.n)


def _ratio_axis(ax: Any) -> None:
    """An axis of ratio - 1, labelled as the ratio: logarithmic down to the lowest mean above 1, and a place for 1."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    drawn = [float(y) for line in ax.get_lines() for y in line.get_ydata() if y > 0]
    power = max(-6, math.floor(math.log10(min(drawn, default=0.1))))
    top = max(ax.get_ylim()[1], 10.0 ** (power + 1))
    ax.set_yscale("symlog", linthresh=10.0**power, linscale=0.5)
    ax.set_ylim(-(10.0**power) / 5, 1.3 * top)
    ax.yaxis.set_major_locator(FixedLocator([0.0, *(10.0**k for k in range(power, math.ceil(math.log10(top)) + 1))]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{1 + v:.8g}"))
    ax.axhline(0.0, color=GREY, lw=0.8, zorder=1)
    ax.set_ylabel("loss / smallest loss")
