"""Losses during training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..rows import Row, at_best, instance, of_kind, values
from ..statistics import Interval, mean_interval
from .series import legend_below, looks, marks, plain_numbers
from .style import BLACK, Look, new_figure, panel, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTION = (
    "Loss of the weights rounded to nearest (solid) and of the float weights (dashed) during training, against steps "
    "and against seconds of training. Lines are geometric means over seeds. Bands are 95 % t intervals without the "
    "differences between instances that all methods share (Cousineau's normalisation with Morey's correction), so that "
    "they can be compared between methods. Where the smallest possible loss is above zero, it is subtracted. Each "
    "method at its tuned settings; float losses far below all rounded ones are cut off. Names are in order of the final "
    "loss of the rounded weights, lowest first."
)
SHOWN_BELOW = 10.0
"""The loss axis reaches this factor below the lowest rounded loss."""


class _Curves(NamedTuple):
    steps: np.ndarray  # (points,)
    seconds: np.ndarray  # (points,), median over seeds
    seeds: list[int]
    logs: dict[str, np.ndarray]  # "rtn", "float": logarithms of losses, (seeds, points); NaN where not positive


def figure_curves(rows: Iterable[Row], experiment: str, format: str, problem: str | None = None) -> Figure:
    """Curves of an experiment's final runs in a format: (a) against steps, (b) against seconds.

    ``problem``: label of the problem, needed where the experiment has several. Raises ValueError where there are no
    such runs and where the problem is not clear.
    """
    runs, title = _select(rows, experiment, format, problem)
    best = at_best(runs)
    order = sorted(best, key=lambda label: fmean(values(best[label], "rtn_loss").values()))
    methods = {label: _curves(best[label]) for label in order}
    bands = {name: _bands(methods, name) for name in ("float", "rtn")}
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
        _limit(left, [c.logs["rtn"] for c in methods.values()])
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


def _curves(runs: Sequence[Row]) -> _Curves:
    """The curves of the runs that succeeded, at the steps that all of them recorded; NaN and None are NaN."""
    kept = [r for r in runs if r["status"] == "ok"]
    steps = sorted(set.intersection(*(set(r["metrics"]["curve"]["step"]) for r in kept)))

    def column(run: Row, name: str) -> list[float]:
        curve: dict[str, Any] = run["metrics"]["curve"]
        at = dict(zip(curve["step"], curve[name], strict=True))
        return [np.nan if at[s] is None else at[s] for s in steps]

    floor = np.array([[r["metrics"].get("noise_floor") or 0.0] for r in kept])
    logs = {}
    for name in ("float", "rtn"):
        losses = np.array([column(r, name) for r in kept], dtype=np.float64) - floor
        logs[name] = np.log(losses, out=np.full_like(losses, np.nan), where=losses > 0)
    seconds = np.median([column(r, "seconds") for r in kept], axis=0)
    return _Curves(np.array(steps), seconds, [r["seed"] for r in kept], logs)


def _bands(methods: Mapping[str, _Curves], name: str) -> dict[str, list[Interval]]:
    """Geometric means and their intervals at each point of each method, NaN where a loss is not positive.

    Seeds are instances, some harder than others for all methods. What they share at a step, the mean logarithm over the
    methods that have all seeds, is taken out of the spread (Cousineau 2005), and the spread widened by √(M / (M - 1))
    for M methods, as their own mean is part of what was taken out (Morey 2008).
    """
    everywhere = set().union(*(c.seeds for c in methods.values()))
    complete = [c for c in methods.values() if set(c.seeds) == everywhere]
    shares = len(complete) > 1 and all(np.isfinite(c.logs[name]).all() for c in complete)
    widen = math.sqrt(len(complete) / (len(complete) - 1)) if shares else 1.0
    out = {}
    for label, curves in methods.items():
        logs = curves.logs[name]
        middle = logs.mean(axis=0)
        spread = logs - middle
        if shares:
            common = np.mean([_at(c, name, curves.steps, curves.seeds) for c in complete], axis=0)
            spread = spread - (common - common.mean(axis=0))
        out[label] = [_interval(m, s, widen) for m, s in zip(middle, spread.T, strict=True)]
    return out


def _at(curves: _Curves, name: str, steps: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Logarithms of losses of these seeds at these steps, (seeds, steps), interpolated between recorded steps."""
    rows = [curves.logs[name][curves.seeds.index(seed)] for seed in seeds]
    return np.array([np.interp(steps, curves.steps, row) for row in rows])


def _interval(middle: float, spread: np.ndarray, widen: float) -> Interval:
    if not np.isfinite(spread).all():
        return Interval(math.nan, None, None, len(spread))
    half = mean_interval(spread).half
    if half is None:
        return Interval(math.exp(middle), None, None, 1)
    half *= widen
    return Interval(math.exp(middle), math.exp(middle - half), math.exp(middle + half), len(spread))


def _draw(ax: Any, x: np.ndarray, found: Sequence[Interval], look: Look, every: tuple[int, int] | None) -> None:
    """One line with its band; points without a place on logarithmic axes are left out. ``every``: marker places."""
    kept = [k for k, i in enumerate(found) if x[k] > 0 and math.isfinite(i.value)]
    if not kept:
        return
    solid = every is not None
    ax.plot(
        x[kept], [found[k].value for k in kept], color=look.color, ls="-" if solid else (0, (3, 1.5)),
        lw=1.9 if solid else 1.1, label=look.label if solid else None, zorder=3 if solid else 2.5,
        **({**marks(look), "markevery": every} if solid else {}),
    )  # fmt: skip
    if found[kept[0]].low is not None:
        ends = [found[k].low for k in kept], [found[k].high for k in kept]
        ax.fill_between(x[kept], *ends, color=look.color, alpha=0.15, lw=0, zorder=2)


def _limit(ax: Any, rtn: Sequence[np.ndarray]) -> None:
    """Keep the float losses, which may fall without end, from flattening the rounded ones."""
    finite = np.concatenate([v[np.isfinite(v)] for v in rtn])
    low, high = ax.get_ylim()
    if len(finite):
        ax.set_ylim(max(low, math.exp(finite.min()) / SHOWN_BELOW), high)
