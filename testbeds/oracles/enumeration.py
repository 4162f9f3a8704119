"""Exact optima of rounding cases by looking at every candidate: the slow, obvious oracle."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from lotion_theory.rounders.base import Case

LIMIT = 2**26
"""Most points compared per row."""

CHUNK = 2**20
"""Points whose losses are held at once."""


class Optimum(NamedTuple):
    """The best quantized weights found.

    ``point``: (rows, n). ``loss``: ``case.loss`` of it, summed over the rows. ``nodes``: how many points (enumeration)
    or partial assignments (search) were looked at. ``proven``: whether no candidate is better, up to rounding.
    ``seconds``: wall time, without compilation.
    """

    point: np.ndarray
    loss: float
    nodes: int
    proven: bool
    seconds: float


def cell_levels(case: Case) -> np.ndarray:
    """The two levels around every weight, (rows, n, 2); equal where a weight is on a level or beyond the ends."""
    return np.stack(case.grid.bracket(case.weights), axis=-1)


def best_in_cell(case: Case) -> Optimum:
    """The best of all up and down roundings: the least loss over the vertices of the cell of W.

    By multilinearity (claim C10) it is also the least smoothed loss over that cell, for any loss. Raises ValueError
    where a row has more than 2^26 vertices.
    """
    return best_of(case, cell_levels(case))


def best_on_grid(case: Case) -> Optimum:
    """The least loss over all L^n points of each row's lattice; ValueError where these are more than 2^26."""
    return best_of(case, case.grid.levels)


def best_of(case: Case, levels: np.ndarray) -> Optimum:
    """The least loss over the product of the level sets ``levels`` (rows, n, any number), repeated levels counted once.

    Raises ValueError for another shape, and where a row has more than 2^26 points.
    """
    began = time.perf_counter()
    sets = level_sets(case, levels)
    for r, row in enumerate(sets):
        count = math.prod(len(s) for s in row)
        if count > LIMIT:
            raise ValueError(f"row {r} has {count:.3g} points, more than the limit of {LIMIT}; use closest_vector")
    point = np.array([_least(case.hessian, w, row) for w, row in zip(case.weights, sets, strict=True)])
    nodes = sum(math.prod(len(s) for s in row) for row in sets)
    return Optimum(point, float(case.loss(point[None])[0]), nodes, True, time.perf_counter() - began)


def level_sets(case: Case, levels: np.ndarray) -> list[list[np.ndarray]]:
    """Sorted distinct levels of every weight, from an array (rows, n, any number); ValueError for another shape."""
    levels = np.asarray(levels, dtype=np.float64)
    if levels.ndim != 3 or levels.shape[:2] != case.weights.shape or not levels.shape[2]:
        rows, n = case.weights.shape
        raise ValueError(f"levels has shape {levels.shape}, expected ({rows}, {n}, number of levels)")
    if not np.isfinite(levels).all():
        raise ValueError("levels has entries that are not finite")
    return [[np.unique(s) for s in row] for row in levels]


def _least(h: np.ndarray, w: np.ndarray, sets: Sequence[np.ndarray]) -> np.ndarray:
    """The best point (n,) of the product of ``sets``.

    The weights are split in two parts, x = (a, b): ``xᵀHx = aᵀH_aa a + bᵀH_bb b + 2 aᵀH_ab b``, so that all pairs of
    parts cost one matrix product.
    """
    n, split, size = len(w), 0, 1
    half = math.sqrt(math.prod(len(s) for s in sets))
    while split < n and size < half:
        size *= len(sets[split])
        split += 1
    a, b = _product(sets[:split]) - w[:split], _product(sets[split:]) - w[split:]
    own_a = ((a @ h[:split, :split]) * a).sum(axis=1)
    own_b = ((b @ h[split:, split:]) * b).sum(axis=1)
    cross = 2 * (a @ h[:split, split:])
    rows = max(1, CHUNK // len(b))
    best, found = np.inf, (0, 0)
    for start in range(0, len(a), rows):
        part = slice(start, start + rows)
        losses = cross[part] @ b.T + own_a[part, None] + own_b
        i, j = divmod(int(losses.argmin()), len(b))
        if losses[i, j] < best:
            best, found = losses[i, j], (start + i, j)
    # Not w + a: adding back what was subtracted may miss the level by a rounding.
    i, j = found
    return np.concatenate([_member(sets[:split], i), _member(sets[split:], j)])


def _product(sets: Sequence[np.ndarray]) -> np.ndarray:
    """All points of a product of sets, (number, len(sets)), the last coordinate changing fastest."""
    if not sets:
        return np.zeros((1, 0))
    return np.stack([g.ravel() for g in np.meshgrid(*sets, indexing="ij")], axis=1)


def _member(sets: Sequence[np.ndarray], number: int) -> np.ndarray:
    """Row ``number`` of :func:`_product`."""
    where = np.unravel_index(number, tuple(len(s) for s in sets)) if sets else ()
    return np.array([s[int(k)] for s, k in zip(sets, where, strict=True)])
