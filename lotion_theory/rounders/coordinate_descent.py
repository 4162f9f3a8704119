"""Coordinate descent on the lattice: one weight at a time to the best of all its levels, until none wants to move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream
from . import gptq, rr, rtn
from .base import Case, Rounder
from .conditional import sweep

STARTS = {"rtn": rtn.ROUNDER, "gptq": gptq.ROUNDER, "rr": rr.ROUNDER}


def descend(case: Case, points: np.ndarray, sweeps: int = 100) -> np.ndarray:
    """A local minimum under changes of single weights, reached from lattice ``points`` (rows, n) and not above them.

    Columns are visited in order, again and again. Along one weight L is a parabola with its minimum at
    ``x - g / H_jj``: the best level is the nearest one to it. A row is done when a sweep moves none of its weights, or
    after ``sweeps`` sweeps. A move counts only if the loss falls by more than the gradient's rounding error could
    explain, so that equal levels are not exchanged for ever. Raises ValueError for less than one sweep.
    """
    if sweeps < 1:
        raise ValueError(f"sweeps={sweeps}: needs at least 1")
    points = points.copy()
    active = np.arange(len(points))
    for _ in range(sweeps):
        now = _swept(case, points, active)
        moved = (now != points[active]).any(axis=1)
        points[active] = now
        active = active[moved]
        if not len(active):
            break
    return points


def _swept(case: Case, points: np.ndarray, active: np.ndarray) -> np.ndarray:
    """The ``active`` rows of ``points`` after one sweep."""
    x, top, units = points[active], case.grid.step[active], case.grid.units
    middles = (units[1:] + units[:-1]) / 2
    h = case.curvature
    root = np.sqrt(np.maximum(h, 0))
    error = x - case.weights[active]
    # |H_jk| <= sqrt(H_jj H_kk) bounds the terms of the gradient; a sum of n rounded products is off by at most about n
    # units of 2^-53 of the sum of their sizes. Errors may change during the sweep: the factor 8 leaves room for that.
    unsure = 8 * len(h) * 2.0**-53 * (np.abs(error) @ root)

    def decide(j: int, slope: np.ndarray) -> np.ndarray:
        if h[j] <= 0:  # such a weight has no effect on the loss
            return np.zeros_like(slope)
        best = top[:, j] * units[np.searchsorted(middles, (x[:, j] - slope / h[j]) / top[:, j])]
        move = best - x[:, j]
        change = move * (slope + h[j] / 2 * move)
        move = np.where(change < -unsure * root[j] * np.abs(move), move, 0.0)
        x[:, j] = np.where(move == 0, x[:, j], best)
        return move

    sweep(error @ case.hessian, case.hessian, decide)
    return x


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
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
