"""RTN after the best clipping factor of every block: a smaller scale for most weights, some of them clipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import Stream
from .._arrays import Array, alike, copied, namespace, to_numpy
from .base import Case, Rounder
from .grid import Grid


class _Blocks(NamedTuple):
    """Blocks on the same columns of several rows, each with its own scale, or (``shared``) all with one."""

    rows: np.ndarray
    columns: slice
    shared: bool


def clipped_grid(case: Case, lowest: float = 0.3, count: int = 100) -> Grid:
    """The case's grid with every block's step times its best factor, for RTN on the new grid.

    Factors are ``count`` values from ``lowest`` to 1, both included. Blocks are searched from left to right, each for
    the least loss of its row with the other blocks as they are then (unsearched ones: RTN). For a diagonal H, and
    where the row is one block, that is the best choice; the loss is never above RTN's. Of equal losses the largest
    factor wins.

    A block is a run of equal steps within a row, or the whole case where all steps are equal. Two neighbouring blocks
    whose steps happen to be equal therefore share a factor. Raises ValueError unless 0 < lowest <= 1 and count >= 1,
    and for a grid with a shift.
    """
    if not 0 < lowest <= 1:
        raise ValueError(f"lowest={lowest}: valid: above 0, at most 1")
    if count < 1:
        raise ValueError(f"count={count}: needs at least 1")
    if case.grid.shift is not None:
        raise ValueError("clip_search scales levels around 0; needs a grid without shift")
    xp, step = namespace(case.weights), copied(case.grid.step)
    error = case.grid.nearest(case.weights) - case.weights
    slope = error @ case.hessian
    for block in _blocks(to_numpy(step)):
        rows, columns = alike(block.rows, step), block.columns
        weights, steps, gradient, before = (x[rows][:, columns] for x in (case.weights, step, slope, error))
        hessian, grid = case.hessian[columns, columns], replace(case.grid, step=steps)
        least = 0 * before[:, 0]
        after, factors = copied(before), 1 + least
        for factor in np.linspace(1, lowest, count).tolist():
            tried = replace(grid, step=factor * steps).nearest(weights) - weights
            move = tried - before
            change = (move * (gradient + move @ hessian / 2)).sum(axis=1)
            if block.shared:
                change[:] = change.sum()
            better = change < least
            after = xp.where(better[:, None], tried, after)
            factors, least = xp.where(better, factor + 0 * factors, factors), xp.minimum(change, least)
        step[rows, columns] *= factors[:, None]
        slope[rows] += (after - before) @ case.hessian[columns]
    return replace(case.grid, step=step)


def _blocks(step: np.ndarray) -> list[_Blocks]:
    """Blocks by first and last column, each row's own from left to right."""
    rows, n = step.shape
    if (step == step[0, 0]).all():
        return [_Blocks(np.arange(rows), slice(0, n), shared=True)]
    found: dict[tuple[int, int], list[int]] = {}
    for r in range(rows):
        edges = [0, *(np.flatnonzero(np.diff(step[r])) + 1).tolist(), n]
        for span in pairwise(edges):
            found.setdefault(span, []).append(r)
    return [_Blocks(np.array(found[span]), slice(*span), shared=False) for span in sorted(found)]


def _search(case: Case, settings: Mapping[str, Any], stream: Stream) -> tuple[Array, Grid]:
    grid = clipped_grid(case, settings["lowest"], settings["count"])
    return grid.nearest(case.weights), grid


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    return _search(case, settings, stream)[0]


ROUNDER = Rounder(
    name="clip_search",
    run=_run,
    information="H",
    grid="searched",
    source="standard (grid search for the clipping factor)",
    evaluations="count losses per block",
    settings={"lowest": 0.3, "count": 100},
    tuning={},
    by_rows=False,
    search=_search,
)
