"""Final losses against the weight λ of the smoothing."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..results.rows import Row, at_best, by_method, excess, grouped, instance, of_kind, row_labels, tuned_settings
from ..results.statistics import comparison_intervals
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
LOSSES = (("rtn_loss", "RTN"), ("rr_loss", "RR"), ("float_loss", "float"))


def figure_lambda(rows: Iterable[Row]) -> Figure:
    """One row of panels per problem and format: RTN, RR and float loss against λ, a line per variant of the method.

    Takes every training run but those that only tune or time; λ = 0 has no place on the axis. Raises ValueError
    where no method was trained with several weights.
    """
    runs = [r for r in of_kind(rows, "train") if r["phase"] not in ("tune", "timing")]
    groups = {
        where: mine
        for where, mine in grouped(runs, instance).items()
        if any(len({_weight(r) for r in of_label}) > 1 for of_label in by_method(mine).values())
    }
    if not groups:
        raise ValueError("rows: no problem and format was trained with several weights λ ('weight' of the method)")
    style = looks(label for mine in groups.values() for label in row_labels(mine))
    with styled():
        figure, axes = new_figure(len(groups), 3, 0.35 + 2.1 * len(groups), sharex=True)
        for row, ((problem, format), mine) in zip(axes, groups.items(), strict=True):
            for ax, (metric, name) in zip(row, LOSSES, strict=True):
                _draw(ax, mine, metric, style)
                panel(ax, list(axes.flat).index(ax), f"{name} loss")
                plain_numbers(ax.yaxis)
            row[0].set_ylabel("\n".join([*wrap(problem, 28), format, "final loss"]), fontsize=8)
        for ax in axes[-1]:
            ax.set_xlabel("weight λ")
        legend_below(figure, axes.flat)
    return figure


def _weight(row: Row) -> float | None:
    value = tuned_settings(row, ("weight",)).get("weight")
    return None if value is None else float(value)


def _draw(ax: Any, runs: list[Row], metric: str, style: dict[str, Look]) -> None:
    cells: dict[tuple[str, float | None], dict[int, float]] = {}
    for label, mine in by_method(runs).items():
        for weight, of_weight in grouped(mine, _weight).items():
            # A label's runs at one λ differ in the learning rate only: the best of these.
            best = next(iter(at_best(of_weight).values()), [])
            losses = excess(best, metric)
            if losses and min(losses.values()) > 0 and (weight is None or weight > 0):
                cells[label, weight] = losses
    names = {str(k): place for k, place in enumerate(cells)}
    found = comparison_intervals(dict(zip(names, cells.values(), strict=True)))
    intervals = {place: found[name] for name, place in names.items()}
    for label in dict.fromkeys(label for label, _ in cells):
        weights = sorted(w for name, w in cells if name == label and w is not None)
        if weights:
            draw_intervals(ax, weights, [intervals[label, w] for w in weights], style[label])
        level = intervals.get((label, None))
        if level is not None:
            ax.axhline(level.value, color=style[label].color, ls=(0, (6, 2)), lw=1.2, label=label, zorder=2)
            if level.low is not None and level.high is not None:
                ax.axhspan(level.low, level.high, color=style[label].color, alpha=0.1, lw=0, zorder=1)
    ax.axvline(1.0, color=GREY, lw=0.7, zorder=1)
    ax.set(xscale="log", yscale="log")
    ticks_at(ax.xaxis, sorted({w for _, w in cells if w is not None}), most=5)
