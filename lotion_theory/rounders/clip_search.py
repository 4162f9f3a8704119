"""RTN after the best clipping factor of every block: a smaller scale for most weights, some of them clipped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from .. import Stream
from .base import Case, Rounder
from .grid import Grid


class _Blocks(NamedTuple):
    """Blocks on the same columns of several rows, each with its own scale, or (``shared``) all with one."""

    rows: np.ndarray
    columns: slice
    shared: bool


def clipped_grid(case: Case, lowest: float = 0.3, count: int = 100) -> Grid:
    """The case's grid with every block's top times its best factor, for RTN on the new grid.

    Factors are ``count`` values from ``lowest`` to 1, both included. Blocks are searched from left to right, each for
    the least loss of its row with the other blocks as they are then (unsearched ones: RTN). For a diagonal H, and
    where the row is one block, that is the best choice; the loss is never above RTN's. Of equal losses the largest
    factor wins.

    A block is a run of equal tops within a row, or the whole case where all tops are equal. Two neighbouring blocks
    whose tops happen to be equal therefore share a factor. Raises ValueError unless 0 < lowest <= 1 and count >= 1.
    """
    if not 0 < lowest <= 1:
        raise ValueError(f"lowest={lowest}: valid: above 0, at most 1")
    if count < 1:
        raise ValueError(f"count={count}: needs at least 1")
    top = case.grid.step.copy()
    error = case.grid.nearest(case.weights) - case.weights
    slope = error @ case.hessian
    for block in _blocks(top):
        part = np.ix_(block.rows, np.arange(top.shape[1])[block.columns])
        weights, tops, gradient, before = case.weights[part], top[part], slope[part], error[part]
        hessian = case.hessian[block.columns, block.columns]
        least = np.zeros(len(block.rows))
        after, factors = before.copy(), np.ones(len(block.rows))
        for factor in np.linspace(1, lowest, count):
            tried = replace(case.grid, step=factor * tops).nearest(weights) - weights
            move = tried - before
            change = (move * (gradient + move @ hessian / 2)).sum(axis=1)
            if block.shared:
                change[:] = change.sum()
            better = change < least
            after[better], factors[better], least[better] = tried[better], factor, change[better]
        top[part] *= factors[:, None]
        slope[block.rows] += (after - before) @ case.hessian[block.columns]
    return replace(case.grid, step=top)


def _blocks(top: np.ndarray) -> list[_Blocks]:
    """Blocks by first and last column, each row's own from left to right."""
    rows, n = top.shape
    if (top == top[0, 0]).all():
        return [_Blocks(np.arange(rows), slice(0, n), shared=True)]
    found: dict[tuple[int, int], list[int]] = {}
    for r in range(rows):
        edges = [0, *(np.flatnonzero(np.diff(top[r])) + 1).tolist(), n]
        for span in pairwise(edges):
            found.setdefault(span, []).append(r)
    return [_Blocks(np.array(found[span]), slice(*span), shared=False) for span in sorted(found)]


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
    return clipped_grid(case, settings["lowest"], settings["count"]).nearest(case.weights)


ROUNDER = Rounder(
    name="clip_search",
    run=_run,
    information="H",
    grid="searched",
    source="standard (grid search for the clipping factor)",
    evaluations="count losses per block",
    settings={"lowest": 0.3, "count": 100},
    tuning={},
)
