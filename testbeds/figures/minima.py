"""How many local minima there are before and after smoothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..results.rows import Row, grouped, of_kind, problem_label, values
from ..results.statistics import Interval, geometric_interval
from .series import dodged, draw_intervals, legend_below, looks, plain_numbers, ticks_at
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
COUNTS = ("local_minima_raw", "local_minima_smoothed", "points")


def figure_minima(rows: Iterable[Row]) -> Figure:
    """Counts of local minima against d per format, raw and smoothed, and the share of lattice points that they are.

    Both axes are logarithmic. ``d`` is a setting of the run or of its problem; where there are several problems, each
    has its lines. Raises ValueError where no run of kind "minima" succeeded.
    """
    runs = [r for r in of_kind(rows, "minima") if r["status"] == "ok"]
    if not runs:
        raise ValueError("rows: no run of kind 'minima' succeeded")
    places = [_place(r) for r in runs]
    several = len({problem for problem, *_ in places}) > 1
    named = [
        (f"{problem}, {format}" if several else format, d, r)
        for (problem, format, d), r in zip(places, runs, strict=True)
    ]
    found = {
        place: {name: _counts((r for *_, r in mine), name) for name in COUNTS}
        for place, mine in grouped(named, lambda item: item[:2]).items()
    }
    formats = list(dict.fromkeys(name for name, _ in found))
    dimensions = sorted({d for _, d in found})
    style = looks(formats)
    with styled():
        from matplotlib.lines import Line2D

        figure, axes = new_figure(1, 2, 2.9, width_ratios=(1.2, 1))
        left, right = axes[0]
        for k, format in enumerate(formats):
            x = dodged(dimensions, k, len(formats), logarithmic=False, share=0.25)
            look = replace(style[format], label=_kept(format, [r for name, _, r in named if name == format]))
            at = [found.get((format, d), {}) for d in dimensions]
            raw = replace(look, label="_raw")  # hidden from the legend
            draw_intervals(left, x, [_mean(c.get(COUNTS[0], {})) for c in at], raw, ls=(0, (3, 1.5)), mfc="white")
            draw_intervals(left, x, [_mean(c.get(COUNTS[1], {})) for c in at], look)
            draw_intervals(right, x, [_mean(_share(c)) for c in at], look)
        left.set_ylabel("local minima")
        right.set_ylabel("share of lattice points")
        for k, (ax, title) in enumerate(((left, "number of local minima"), (right, "smoothed over flat pieces"))):
            ax.set(yscale="log", xlabel="number of weights d")
            ticks_at(ax.xaxis, dimensions)
            plain_numbers(ax.yaxis)
            panel(ax, k, title)
        kinds = [
            Line2D([], [], color=BLACK, lw=1.5, ls=(0, (3, 1.5)), marker="o", mfc="white", ms=4.5, label="raw"),
            Line2D([], [], color=BLACK, lw=1.5, marker="o", ms=4.5, label="smoothed"),
        ]
        left.legend(handles=kinds, loc="upper left")
        legend_below(figure, axes[0])
    return figure


def _place(row: Row) -> tuple[str, str, int]:
    """Problem without its dimension, format, and dimension."""
    problem = dict(row["config"].get("problem", {"name": ""}))
    d = problem.pop("d", None)
    return problem_label(problem), str(row["config"]["format"]), row["config"].get("d", d)


def _counts(runs: Iterable[Row], name: str) -> dict[int, float]:
    return {seed: count for seed, count in values(runs, name).items() if count > 0}


def _share(counts: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    smoothed, points = counts.get(COUNTS[1], {}), counts.get(COUNTS[2], {})
    return {seed: smoothed[seed] / points[seed] for seed in smoothed if seed in points}


def _mean(found: Mapping[int, float]) -> Interval | None:
    return geometric_interval(found.values()) if found else None


def _kept(format: str, runs: Iterable[Row]) -> str:
    """The format, and how often the global minimum was kept, where that was looked at."""
    kept = [bool(r["metrics"]["global_kept"]) for r in runs if r["metrics"].get("global_kept") is not None]
    return f"{format}: global minimum kept {sum(kept)} of {len(kept)}" if kept else format
