"""Losses during training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..results.curves import bands_of, by_final_loss, method_curves
from ..results.rows import Row, at_best, instance, of_kind
from ..results.statistics import Interval
from .series import legend_below, looks, marks, plain_numbers
from .style import BLACK, Look, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Loss of the weights rounded to nearest (solid) and of the float weights (dashed) during training, against steps "
    "and against seconds of training. Lines are geometric means over seeds. Bands are 95 % t intervals without the "
    "differences between instances that all methods share (Cousineau's normalisation with Morey's correction): they "
    "are for comparing methods. Where the smallest possible loss is above zero, it is subtracted. Each method at its "
    "tuned settings; float losses far below all rounded ones are cut off. Names are in order of the final loss of the "
    "rounded weights, lowest first."
)
SHOWN_BELOW = 10.0
"""The loss axis reaches this factor below the lowest rounded loss."""


def figure_curves(rows: Iterable[Row], experiment: str, format: str, problem: str | None = None) -> Figure:
    """Curves of an experiment's final runs in a format: (a) against steps, (b) against seconds.

    ``problem``: label of the problem, needed where the experiment has several. Raises ValueError where there are no
    such runs and where the problem is not clear.
    """
    runs, title = _select(rows, experiment, format, problem)
    best = at_best(runs)
    methods = {label: method_curves(best[label]) for label in by_final_loss(best)}
    bands = {name: bands_of(methods, name) for name in ("float", "rtn")}
    style = looks(methods)
    with styled():
        from matplotlib.lines import Line2D

        figure, axes = new_figure(1, 2, 3.1, sharey=True)
        left, right = axes[0]
        for k, (label, curves) in enumerate(methods.items()):
            for ax, x in ((left, curves.steps), (right, curves.seconds)):
                _draw(ax, x, bands["float"][label], style[label], None)
                _draw(ax, x, bands["rtn"][label], style[label], (k % 3, 3))
        figure.suptitle(title)
        for k, (ax, name, words) in enumerate(((left, "steps", "against steps"), (right, "seconds", "against time"))):
            ax.set(xscale="log", yscale="log", xlabel=f"{name} of training")
            panel(ax, k, words)
        _limit(left, [c.losses["rtn"] for c in methods.values()])
        floored = any(r["metrics"].get("noise_floor") for r in runs)
        left.set_ylabel("loss above the smallest possible" if floored else "loss")
        plain_numbers(left.yaxis)
        handles = [
            Line2D([], [], color=BLACK, lw=1.9, label="rounded to nearest"),
            Line2D([], [], color=BLACK, lw=1.1, ls=(0, (3, 1.5)), label="float"),
        ]
        legend_below(figure, axes[0], handles)
    return figure


def _select(rows: Iterable[Row], experiment: str, format: str, problem: str | None) -> tuple[list[Row], str]:
    found = [r for r in of_kind(rows, "train", experiment) if r["phase"] == "final" and r["metrics"].get("curve")]
    formats = sorted({instance(r)[1] for r in found})
    if format not in formats:
        raise ValueError(f"format={format!r} has no final runs with curves in {experiment!r}; valid: {formats}")
    found = [r for r in found if instance(r)[1] == format]
    problems = sorted({instance(r)[0] for r in found})
    if (problem is None and len(problems) > 1) or (problem is not None and problem not in problems):
        raise ValueError(f"problem={problem!r} in experiment {experiment!r}; valid: {', '.join(problems)}")
    return [r for r in found if problem in (None, instance(r)[0])], f"{problem or problems[0]}, {format}"


def _draw(ax: Any, x: np.ndarray, found: Sequence[Interval | None], look: Look, every: tuple[int, int] | None) -> None:
    """One line with its band; points without a place on logarithmic axes are left out. ``every``: marker places."""
    drawn = [(place, i) for place, i in zip(x, found, strict=True) if place > 0 and i is not None]
    if not drawn:
        return
    places, means = [place for place, _ in drawn], [i.value for _, i in drawn]
    solid = every is not None
    ax.plot(
        places, means, color=look.color, ls="-" if solid else (0, (3, 1.5)),
        lw=1.9 if solid else 1.1, label=look.label if solid else None, zorder=3 if solid else 2.5,
        **({**marks(look), "markevery": every} if solid else {}),
    )  # fmt: skip
    if drawn[0][1].low is not None:
        ends = [i.low for _, i in drawn], [i.high for _, i in drawn]
        ax.fill_between(places, *ends, color=look.color, alpha=0.15, lw=0, zorder=2)


def _limit(ax: Any, rtn: Sequence[np.ndarray]) -> None:
    """Keep the float losses, which may fall without end, from flattening the rounded ones."""
    positive = np.concatenate([v[v > 0] for v in rtn])
    low, high = ax.get_ylim()
    if len(positive):
        ax.set_ylim(max(low, positive.min() / SHOWN_BELOW), high)
