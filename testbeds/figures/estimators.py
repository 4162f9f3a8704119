"""Bias and spread of gradient estimators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.estimators import Estimator, estimators, series_names
from ..results.rows import Row, final_runs
from .series import Picture, legend_below, looks
from .style import BLACK, GREY, Look, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Estimators of the gradient of the smoothed loss: norm of the bias (left) and standard deviation of one sample "
    "(right), both over the norm of the exact gradient. Marks are medians over instances, their lines reach from the "
    "lowest to the highest. Hollow marks: on at least half of the instances the bias is below two of its standard "
    "errors, so that it may be zero; the mark only says how small a bias the samples could have shown. Marks left of "
    "the dotted line are zero up to rounding errors."
)
PANELS = (("bias", "bias"), ("deviation", "standard deviation"))


def pictures(experiment: str, rows: Sequence[Row]) -> Iterator[Picture]:
    """The figure of an experiment's final runs, where one succeeded."""
    final = final_runs(rows, "estimator")
    if final:
        yield Picture(figure_estimators(final), (experiment,), CAPTION)


def figure_estimators(rows: Iterable[Row]) -> Figure:
    """Bias and standard deviation per estimator, the least biased on top; a mark per problem and format.

    Raises ValueError where no run of kind "estimator" succeeded.
    """
    rows = list(rows)
    found = estimators(rows)
    style = looks(series_names(rows))
    positive = [v for e in found.values() for part in e.spreads.values() for s in part.values() for v in s if v > 0]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    zero = low / 4
    with styled():
        from matplotlib.lines import Line2D

        figure, axes = new_figure(1, 2, 0.9 + 0.27 * len(found), sharex=True, sharey=True)
        for at, (ax, (metric, title)) in enumerate(zip(axes[0], PANELS, strict=True)):
            _draw(ax, found, metric, style, zero)
            ax.set(xscale="log", xlim=(zero / 1.8, high * 1.6), xlabel=f"{title} / norm of the gradient")
            _mark_zero(ax, zero, low)
            panel(ax, at, title)
        axes[0, 0].set_yticks(range(len(found)), [label.replace("_", " ") for label in found])
        axes[0, 0].set_ylim(len(found) - 0.5, -0.5)
        hollow = Line2D([], [], ls="none", marker="o", ms=5, color=BLACK, mfc="white", label="may be zero")
        legend_below(figure, axes[0], [hollow] if any(e.hidden for e in found.values()) else [])
    return figure


def _draw(ax: Any, found: Mapping[str, Estimator], metric: str, style: Mapping[str, Look], zero: float) -> None:
    for y, estimator in enumerate(found.values()):
        ax.axhline(y, color=GREY, lw=0.5, alpha=0.35, zorder=0)
        for k, (name, look) in enumerate(style.items()):
            spread = estimator.spreads[metric].get(name)
            if spread is not None:
                middle, low, high = (max(v, zero) for v in spread)
                place = y + 0.5 * ((k + 0.5) / len(style) - 0.5)
                hollow = metric == "bias" and name in estimator.hidden
                ax.hlines(place, low, high, color=look.color, lw=1.1, zorder=2)
                ax.plot(
                    middle, place, look.marker, color=look.color, ms=5, zorder=3, label=look.label,
                    markerfacecolor="white" if hollow else look.color,
                )  # fmt: skip
    ax.tick_params(axis="y", length=0)


def _mark_zero(ax: Any, zero: float, low: float) -> None:
    """A place for zero at the left of a logarithmic axis, if something lies there."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    decades = [10.0**k for k in range(int(np.ceil(np.log10(low / 1.5))), 1 + int(np.floor(np.log10(ax.get_xlim()[1]))))]
    if any(np.min(line.get_xdata()) <= zero for line in ax.get_lines() if line.get_marker() != "None"):
        ax.axvline((zero * low) ** 0.5, color=GREY, lw=0.8, ls=(0, (2, 2)), zorder=0)
        decades = [zero, *decades]
    ax.xaxis.set_major_locator(FixedLocator(decades))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda v, _: "0" if v <= zero else f"{v:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
