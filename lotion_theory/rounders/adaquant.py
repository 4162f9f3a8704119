"""AdaQuant: straight-through descent of the layer's error in the weights, which may leave their cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from .. import Stream
from .._arrays import Array, alike, dtype_name, namespace, to_numpy
from ..functions import exp
from ._adam import Adam, check, rounding_scale
from .base import Case, Rounder
from .grid import Grid


def learn(case: Case, steps: int = 1000, lr: float = 0.003, scale_lr: float = 0.0) -> tuple[Array, Grid]:
    """The best points (rows, n) that ``steps`` of Adam on ``L(Q(w))`` from W met, row by row, and their lattice.

    The derivative of Q is taken to be 1 between the end levels and 0 beyond (straight-through). ``lr``: step of a
    weight in mean gaps of its levels. With ``scale_lr`` above 0 the logarithm of each block's step is learned too, at
    that rate, by the derivative of the levels chosen. A block is a run of columns within which no row's step or shift
    changes; where all weights of a case have one step and shift, they share one factor. RTN of W is the first point
    met, so that none is above it.
    """
    xp, weights = namespace(case.weights), case.weights
    unit, scale = case.grid.gap, rounding_scale(case, "mean gap", lambda part: part.grid.gap)
    blocks = _blocks(case.grid)
    shared = scale_lr > 0 and blocks.shape[1] == 1 and _one_lattice(case.grid)
    size = xp.zeros_like(weights[:, :1]) + 0 * blocks[:1]  # logarithms of factors, (rows, blocks)
    turn, stretch = Adam(), Adam()
    w, grid = weights, case.grid
    best, kept, least = weights, size, float("inf") + 0 * weights[:, 0]
    for t in range(steps + 1):
        points = grid.nearest(w)
        error = points - weights
        slope = error @ case.hessian
        loss = (error * slope).sum(axis=1)
        if shared:
            loss = 0 * loss + loss.sum()
        better = (loss < least)[:, None]
        best, kept, least = xp.where(better, points, best), xp.where(better, size, kept), xp.minimum(loss, least)
        if t == steps:
            break
        low, high = grid.ends
        inside = (w >= low) & (w <= high)
        if scale_lr > 0:
            pull = (slope * (points if grid.shift is None else points - grid.shift) / scale) @ blocks
            if shared:
                pull = 0 * pull + pull.sum()
            size = size - scale_lr * stretch(pull)
            grid = replace(case.grid, step=case.grid.step * (exp(size) @ blocks.T))
        w = w - lr * unit * turn(slope * unit / scale * inside)
    return best, case.grid if scale_lr <= 0 else replace(case.grid, step=case.grid.step * (exp(kept) @ blocks.T))


def _blocks(grid: Grid) -> Array:
    """Which block each column is in, (n, blocks), 0 or 1, in the type and place of the grid."""
    changes = np.zeros(grid.step.shape[1], bool)
    for part in (grid.step, grid.shift):
        if part is not None:
            changes[1:] |= (np.diff(to_numpy(part), axis=1) != 0).any(axis=0)
    number = np.cumsum(changes)
    return alike((number[:, None] == np.arange(number[-1] + 1)).astype(dtype_name(grid.step)), grid.step)


def _one_lattice(grid: Grid) -> bool:
    return all(part is None or bool((part == part[0, 0]).all()) for part in (grid.step, grid.shift))


def checked(settings: Mapping[str, Any]) -> None:
    """ValueError for steps and rates that are none."""
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("lr", settings["lr"], settings["lr"] >= 0, "at least 0")


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    checked(settings)
    return learn(case, settings["steps"], settings["lr"])[0]


# Published: 1000 steps at a rate of 1e-5 in the unit of the weights; rates here are in gaps of levels.
ROUNDER = Rounder(
    name="adaquant",
    run=_run,
    information="H",
    grid="fixed",
    source="AdaQuant, arXiv 2006.10518, layer by layer, with frozen scales",
    evaluations="steps",
    settings={"steps": 1000, "lr": 0.003},
    tuning={"lr": (0.001, 0.003, 0.01, 0.03, 0.1)},
)
