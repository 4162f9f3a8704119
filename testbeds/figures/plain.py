"""Figures that are plain data, drawn without any more knowledge of what they show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from ..results.statistics import Interval
from ..results.studies import Figure as Data
from .series import Picture, draw_intervals, legend_below, looks, plain_numbers, ticks_at
from .style import GREY, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pictures(experiment: str, figures: Iterable[Data]) -> Iterator[Picture]:
    """Each of an experiment's figures, named by its title."""
    for found in figures:
        yield Picture(figure_plain(found), (experiment, found["title"]), found["caption"])


def figure_plain(found: Data) -> Figure:
    """One panel with the axes and series of :mod:`testbeds.results.studies`: lines through places, or marks by name."""
    style = looks(series["name"] for series in found["series"])
    # Places on the horizontal axis, or names downwards.
    names = list(dict.fromkeys(p[0] for series in found["series"] for p in series["points"]))
    dots = bool(found.get("dots"))
    with styled():
        figure, axes = new_figure(1, 1, 0.9 + 0.27 * len(names) if dots else 2.9)
        (ax,) = axes[0]
        ax.set_title(found["title"], loc="left")
        for series in found["series"]:
            look = style[series["name"]]
            if dots:
                _draw_dots(ax, [names.index(p[0]) for p in series["points"]], series["points"], look)
            else:
                draw_intervals(ax, [p[0] for p in series["points"]], [_interval(p) for p in series["points"]], look)
        if dots:
            ax.set_yticks(range(len(names)), names)
            ax.set_ylim(len(names) - 0.5, -0.5)
        else:
            ax.set_ylabel(found["y"]["label"])
            if found["y"].get("rule") is not None:
                ax.axhline(found["y"]["rule"], color=GREY, lw=0.9, zorder=1)
            _scale(ax, "y", found["y"]["log"])
        ax.set_xlabel(found["x"]["label"])
        _scale(ax, "x", found["x"]["log"])
        if not dots:
            ticks_at(ax.xaxis, sorted(names))
        legend_below(figure, axes[0])
    return figure


def _scale(ax: Any, axis: str, logarithmic: bool) -> None:
    if logarithmic:
        ax.set(**{f"{axis}scale": "log"})
        plain_numbers(getattr(ax, f"{axis}axis"))


def _draw_dots(ax: Any, places: list[int], points: list[list[Any]], look: Any) -> None:
    found = [_interval(p) for p in points]
    ax.plot([i.value for i in found], places, ls="none", marker=look.marker, color=look.color, label=look.label)
    for place, i in zip(places, found, strict=True):
        if i.low is not None and i.high is not None:
            ax.hlines(place, i.low, i.high, color=look.color, lw=1.1, alpha=0.65)


def _interval(point: list[Any]) -> Interval:
    value, *ends = point[1:]
    low, high = ends or (None, None)
    return Interval(value, low, high, 0)
