"""Coordinate descent on the lattice: one weight at a time to the best of all its levels, until none wants to move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .. import Stream
from .._arrays import Array, copied, device, dtype_name, namespace, precision
from . import gptq, rr, rtn
from .base import Case, Rounder
from .places import Columns, turned
from .sweep import sweep

STARTS = {
    "rtn": rtn.ROUNDER, "gptq": gptq.ROUNDER, "rr": rr.ROUNDER,
    "gptq_curvature": replace(gptq.ROUNDER, settings={**gptq.ROUNDER.settings, "order": "curvature"}),
}  # fmt: skip


def descend(case: Case, points: Array, sweeps: int = 100) -> Array:
    """A local minimum under changes of single weights, reached from lattice ``points`` (rows, n) and not above them.

    Columns are visited in order, again and again. Along one weight L is a parabola with its minimum at
    ``x - g / H_jj``: the best level is the nearest one to it. A row is done when a sweep moves none of its weights, or
    after ``sweeps`` sweeps. A move counts only if the loss falls by more than the gradient's rounding error could
    explain, so that equal levels are not exchanged for ever. Raises ValueError for less than one sweep.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps={sweeps}: needs at least 1")
    points, part, columns = copied(points), case, Columns(case.grid)
    active = namespace(points).arange(len(points), device=device(points))
    for _ in range(sweeps):
        x = points[active]
        now = _swept(part, columns, x)
        points[active] = now
        moved = namespace(x).any(now != x, axis=1)
        count = int(moved.sum())
        if not count:
            break
        if 2 * count <= len(active):  # rows that rest cost time but do not move
            active = active[moved]
            part = Case(case.hessian, case.weights[active], case.grid.rows(active))
            columns = Columns(part.grid)
    return points


def _swept(case: Case, columns: Columns, points: Array) -> Array:
    """``points`` after one sweep."""
    x, h = turned(points), case.curvature
    root = h.clip(0) ** 0.5
    error = points - case.weights
    # |H_jk| <= sqrt(H_jj H_kk) bounds the terms of the gradient; a sum of n rounded products is off by at most about n
    # units of rounding of the sum of their sizes. Errors may change during the sweep: the factor 8 leaves room. In
    # float32 that would hold up real gains, so that 8 standard deviations of such a sum, of sqrt(n) units, must do.
    bits = precision(dtype_name(points))
    terms = len(h) if bits == 53 else len(h) ** 0.5
    unsure = 8 * terms * 2.0**-bits * (abs(error) @ root)
    h, root, where = h.tolist(), root.tolist(), namespace(x).where

    def decide(j: int, slope: Array) -> Array:
        if h[j] <= 0:  # such a weight has no effect on the loss
            return 0 * slope
        best = columns.near(j, x[j] - slope / h[j])
        move = best - x[j]
        change = move * (slope + h[j] / 2 * move)
        falls = change < -root[j] * unsure * abs(move)
        x[j] = where(falls, best, x[j])
        return move * falls

    sweep(turned(error @ case.hessian), case.hessian, decide)
    return x.T


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    if settings["start"] not in STARTS:
        raise ValueError(f"unknown start {settings['start']!r}; valid: {', '.join(STARTS)}")
    return descend(case, STARTS[settings["start"]](case, stream), settings["sweeps"])


ROUNDER = Rounder(
    name="coordinate_descent",
    run=_run,
    information="H",
    grid="fixed",
    source="standard (iterated conditional modes: Besag 1986)",
    evaluations="3/2 products per sweep, and the start's",
    settings={"start": "rtn", "sweeps": 100},
    tuning={"start": tuple(STARTS)},
)
