"""How many local minima there are before and after smoothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ..results.minima import minima
from ..results.rows import Row, final_runs
from .series import Picture, dodged, draw_intervals, legend_below, looks, plain_numbers, ticks_at
from .style import BLACK, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Local minima on a frozen lattice against the number of weights d: geometric means over instances with 95 % t "
    "intervals. Raw (dashed): flat pieces of the quantized loss that no piece touching them, at corners included, is "
    "below. Smoothed (solid): strict local minima of the smoothed loss, which are the lattice points that no step of "
    "one weight improves. Right: the smoothed ones over all lattice points, each of which is a flat piece of the "
    "quantized loss. Named with each format: on how many instances the global minimum is kept. Points of different "
    "formats are moved apart sideways."
)


def pictures(experiment: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """The figure of an experiment's final runs, where one succeeded."""
    final = final_runs(rows, "minima")
    if final:
        yield Picture(figure_minima(final), (experiment,), CAPTION)


def figure_minima(rows: Iterable[Row]) -> Figure:
    """Counts of local minima against d per format, raw and smoothed, and the share of lattice points that they are.

    Both axes are logarithmic. ``d`` is a setting of the run or of its problem; where there are several problems, each
    has its lines. Raises ValueError where no run of kind "minima" succeeded.
    """
    lines, kept = minima(rows)
    several = len({problem for problem, _ in lines}) > 1
    names = {place: f"{place[0]}, {place[1]}" if several else place[1] for place in lines}
    dimensions = sorted({d for line in lines.values() for d in line})
    style = looks(names.values())
    with styled():
        from matplotlib.lines import Line2D

        figure, axes = new_figure(1, 2, 2.9, width_ratios=(1.2, 1))
        left, right = axes[0]
        for k, (place, name) in enumerate(names.items()):
            x = dodged(dimensions, k, len(names), logarithmic=False, share=0.25)
            look = replace(style[name], label=_label(name, *kept[place]))
            at = [lines[place].get(d) for d in dimensions]
            raw = replace(look, label="_raw")  # hidden from the legend
            draw_intervals(left, x, [None if c is None else c.raw for c in at], raw, ls=(0, (3, 1.5)), mfc="white")
            draw_intervals(left, x, [None if c is None else c.smoothed for c in at], look)
            draw_intervals(right, x, [None if c is None else c.share for c in at], look)
        left.set_ylabel("local minima")
        right.set_ylabel("share of lattice points")
        for k, (ax, title) in enumerate(((left, "number of local minima"), (right, "smoothed over flat pieces"))):
            ax.set(yscale="log", xlabel="number of weights d")
            ticks_at(ax.xaxis, dimensions)
            plain_numbers(ax.yaxis)
            panel(ax, k, title)
        handles = [
            Line2D([], [], color=BLACK, lw=1.5, ls=(0, (3, 1.5)), marker="o", mfc="white", ms=4.5, label="raw"),
            Line2D([], [], color=BLACK, lw=1.5, marker="o", ms=4.5, label="smoothed"),
        ]
        left.legend(handles=handles, loc="upper left")
        legend_below(figure, axes[0])
    return figure


def _label(name: str, kept: int, seen: int) -> str:
    """The series, and how often the global minimum was kept, where that was looked at."""
    return f"{name}: global minimum kept {kept} of {seen}" if seen else name
