"""Losses during training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..rows import Row, at_best, instance, of_kind, values
from ..statistics import Interval, average, comparison_intervals
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


class Curves(NamedTuple):
    """A method's curves: ``losses`` has "float", "rtn" and, where every run recorded it, "rr"."""

    steps: np.ndarray  # (points,)
    seconds: np.ndarray  # (points,), median over seeds
    seeds: list[int]
    losses: dict[str, np.ndarray]  # (seeds, points) each


def figure_curves(rows: Iterable[Row], experiment: str, format: str, problem: str | None = None) -> Figure:
    """Curves of an experiment's final runs in a format: (a) against steps, (b) against seconds.

    ``problem``: label of the problem, needed where the experiment has several. Raises ValueError where there are no
    such runs and where the problem is not clear.
    """
    runs, title = _select(rows, experiment, format, problem)
    best = at_best(runs)
    order = sorted(best, key=lambda label: average(values(best[label], "rtn_loss").values()))
    methods = {label: method_curves(best[label]) for label in order}
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
        kinds = [
            Line2D([], [], color=BLACK, lw=1.9, label="rounded to nearest"),
            Line2D([], [], color=BLACK, lw=1.1, ls=(0, (3, 1.5)), label="float"),
        ]
        legend_below(figure, axes[0], kinds)
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


def method_curves(runs: Sequence[Row]) -> Curves:
    """The curves of the runs that succeeded, at the steps that all of them recorded; NaN and None are NaN."""
    kept = [r for r in runs if r["status"] == "ok"]
    steps = sorted(set.intersection(*(set(r["metrics"]["curve"]["step"]) for r in kept)))

    def column(run: Row, name: str) -> list[float]:
        curve: dict[str, Any] = run["metrics"]["curve"]
        at = dict(zip(curve["step"], curve[name], strict=True))
        return [np.nan if at[s] is None else at[s] for s in steps]

    floor = np.array([[r["metrics"].get("noise_floor") or 0.0] for r in kept])
    names = ["float", "rtn", *(["rr"] if all("rr" in r["metrics"]["curve"] for r in kept) else [])]
    losses = {name: np.array([column(r, name) for r in kept], dtype=np.float64) - floor for name in names}
    return Curves(
        np.array(steps), np.median([column(r, "seconds") for r in kept], axis=0), [r["seed"] for r in kept], losses
    )


def bands_of(methods: Mapping[str, Curves], name: str) -> dict[str, list[Interval | None]]:
    """Means and intervals at each point of each method, None where a loss is not positive.

    Methods that recorded other steps enter the comparison with values interpolated between theirs.
    """
    every = sorted(set().union(*(c.steps.tolist() for c in methods.values())))
    at = {label: np.array([np.interp(every, c.steps, row) for row in c.losses[name]]) for label, c in methods.items()}
    found: dict[str, dict[float, Interval]] = {label: {} for label in methods}
    for k, step in enumerate(every):
        positive = {
            label: dict(zip(c.seeds, at[label][:, k].tolist(), strict=True))
            for label, c in methods.items()
            if (at[label][:, k] > 0).all()
        }
        for label, interval in comparison_intervals(positive).items():
            found[label][step] = interval
    return {label: [found[label].get(step) for step in c.steps.tolist()] for label, c in methods.items()}


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
