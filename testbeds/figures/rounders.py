"""Rounding schemes against the exact optimum, as dimensions grow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..rows import Row, by_method, grouped, of_kind, problem_label, row_labels, values
from ..statistics import Interval, average, mean_interval, proportion_interval
from .series import dodged, draw_intervals, legend_below, looks, ticks_at
from .style import GREY, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Rounding schemes on instances whose best rounding is proven, against their dimension. Left: share of instances on "
    "which a scheme finds it, with 95 % Wilson intervals. Right: mean of its loss over the smallest "
    "possible one, with 95 % t intervals, on an axis that is logarithmic in how far it lies above 1. Names are in "
    "order of that mean over all instances, best first; points are moved apart sideways."
)


def figure_rounders(rows: Iterable[Row], width: str = "d") -> Figure:
    """One row of panels per problem and format: share of optima found, and mean ratio to the optimum, against d.

    ``width``: the setting of the problem on the horizontal axis. Schemes that choose their own scales are left out:
    they have another optimum. Raises ValueError where no run has a known optimum.
    """
    runs = [
        r for r in of_kind(rows, "round")
        if r["phase"] not in ("tune", "timing") and width in r["config"]["problem"]
        and r["metrics"].get("optimal") is not None and r["metrics"].get("grid", "fixed") == "fixed"
    ]  # fmt: skip
    if not runs:
        raise ValueError(f"rows: none of kind 'round' has a problem with {width!r} and a known optimum")
    ratios = {label: average(_ratios(mine)) for label, mine in by_method(runs, ()).items() if _ratios(mine)}
    order = sorted(ratios, key=lambda label: ratios[label])
    style = looks(order)
    groups = grouped(zip(row_labels(runs, ()), runs, strict=True), lambda pair: _place(pair[1], width))
    with styled():
        figure, axes = new_figure(len(groups), 2, 0.3 + 2.5 * len(groups), sharex="row")
        for row, ((problem, format), pairs) in zip(axes, groups.items(), strict=True):
            dimensions = sorted({run["config"]["problem"][width] for _, run in pairs})
            logarithmic = len(dimensions) > 1 and dimensions[-1] / dimensions[0] > 10
            for k, label in enumerate(order):
                mine = [run for name, run in pairs if name == label]
                at = {d: [r for r in mine if r["config"]["problem"][width] == d] for d in dimensions}
                places = dodged(dimensions, k, len(order), logarithmic, min(0.5, 0.035 * len(order)))
                draw_intervals(row[0], places, [_share(at[d]) for d in dimensions], style[label])
                draw_intervals(row[1], places, [_excess(at[d]) for d in dimensions], style[label])
            row[0].set(ylim=(-0.03, 1.03), ylabel="share of optima found")
            _ratio_axis(row[1])
            for ax in row:
                ax.set(xscale="log" if logarithmic else "linear", xlabel=f"dimension {width}")
                ticks_at(ax.xaxis, dimensions)
                panel(ax, list(axes.flat).index(ax), f"{problem}, {format}")
        legend_below(figure, axes.flat)
    return figure


def _place(row: Row, width: str) -> tuple[str, str]:
    problem = {k: v for k, v in row["config"]["problem"].items() if k != width}
    return problem_label(problem), str(row["config"]["format"])


def _ratios(runs: Sequence[Row]) -> list[float]:
    return list(values(runs, "ratio").values())


def _excess(runs: Sequence[Row]) -> Interval | None:
    """Mean of ratio - 1, which cannot be negative, and so neither can the ends of its interval."""
    found = _ratios(runs)
    if not found:
        return None
    mean = mean_interval(found)
    low, high = (None if end is None else max(0.0, end - 1) for end in (mean.low, mean.high))
    return Interval(max(0.0, mean.value - 1), low, high, mean.n)


def _share(runs: Sequence[Row]) -> Interval | None:
    found = values(runs, "optimal")
    return proportion_interval(int(sum(found.values())), len(found)) if found else None


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
