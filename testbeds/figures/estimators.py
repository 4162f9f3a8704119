"""Bias and spread of gradient estimators."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.rows import Row, by_method, instance, of_kind
from .series import legend_below, looks
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
ERRORS = 2.0
"""A bias below this many standard errors is not told apart from zero."""
ROUNDING = 1e-9
"""What is smaller, relative to the gradient, is a rounding error of float64 and counts as zero."""


def figure_estimators(rows: Iterable[Row]) -> Figure:
    """Bias and standard deviation per estimator, the least biased on top; a mark per problem and format.

    Raises ValueError where no run of kind "estimator" succeeded.
    """
    runs = [r for r in of_kind(rows, "estimator") if r["status"] == "ok"]
    if not runs:
        raise ValueError("rows: no run of kind 'estimator' succeeded")
    methods = by_method(runs, ())
    # Whatever is not told apart from zero is unbiased as far as anyone knows: the quieter one comes first.
    order = sorted(
        methods, key=lambda m: (not _hidden(methods[m]), *(_median(methods[m], k) for k in _keys(methods[m])))
    )
    style = looks(_series(r, runs) for r in runs)
    positive = [v for metric, _ in PANELS for v in _numbers(runs, metric) if v > 0]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    zero = low / 4
    with styled():
        from matplotlib.lines import Line2D

        figure, axes = new_figure(1, 2, 0.9 + 0.27 * len(order), sharex=True, sharey=True)
        for at, (ax, (metric, title)) in enumerate(zip(axes[0], PANELS, strict=True)):
            _draw(ax, methods, order, runs, metric, style, zero)
            ax.set(xscale="log", xlim=(zero / 1.8, high * 1.6), xlabel=f"{title} / norm of the gradient")
            _mark_zero(ax, zero, low)
            panel(ax, at, title)
        axes[0, 0].set_yticks(range(len(order)), [label.replace("_", " ") for label in order])
        axes[0, 0].set_ylim(len(order) - 0.5, -0.5)
        hollow = Line2D([], [], ls="none", marker="o", ms=5, color=BLACK, mfc="white", label="may be zero")
        legend_below(figure, axes[0], [hollow] if any(map(_hollow, methods.values())) else [])
    return figure


def _series(row: Row, runs: Sequence[Row]) -> str:
    """The format, with the problem where there are several; empty where the runs name neither."""
    if "format" not in row["config"] or "problem" not in row["config"]:
        return str(row["config"].get("format", ""))
    problem, format = instance(row)
    return format if len({instance(r)[0] for r in runs if "problem" in r["config"]}) < 2 else f"{problem}, {format}"


def _numbers(runs: Iterable[Row], metric: str) -> list[float]:
    found = (r["metrics"].get(metric) for r in runs)
    return [float(v) if v > ROUNDING else 0.0 for v in found if v is not None and np.isfinite(v)]


def _median(runs: Sequence[Row], metric: str) -> float:
    found = _numbers(runs, metric)
    return float(np.median(found)) if found else np.inf


def _hidden(runs: Sequence[Row]) -> bool:
    """Whether the bias is not told apart from zero on at least half of the instances."""
    below = [
        r["metrics"]["bias"] <= max(ROUNDING, ERRORS * (r["metrics"].get("bias_standard_error") or 0.0))
        for r in runs
        if r["metrics"].get("bias") is not None
    ]
    return bool(below) and float(np.mean(below)) >= 0.5


def _hollow(runs: Sequence[Row]) -> bool:
    """Whether the bias is neither zero nor known to differ from it."""
    return _hidden(runs) and max(_numbers(runs, "bias"), default=0.0) > 0


def _keys(runs: Sequence[Row]) -> tuple[str, ...]:
    return ("deviation", "bias") if _hidden(runs) else ("bias", "deviation")


def _draw(
    ax: Any, methods: dict[str, list[Row]], order: list[str], runs: list[Row], metric: str,
    style: dict[str, Look], zero: float,
) -> None:  # fmt: skip
    for y, label in enumerate(order):
        ax.axhline(y, color=GREY, lw=0.5, alpha=0.35, zorder=0)
        for k, (name, look) in enumerate(style.items()):
            mine = [r for r in methods[label] if _series(r, runs) == name]
            found = [max(v, zero) for v in _numbers(mine, metric)]
            if found:
                place = y + 0.5 * ((k + 0.5) / len(style) - 0.5)
                hollow = metric == "bias" and _hollow(mine)
                ax.hlines(place, min(found), max(found), color=look.color, lw=1.1, zorder=2)
                ax.plot(
                    np.median(found), place, look.marker, color=look.color, ms=5, zorder=3, label=look.label,
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
