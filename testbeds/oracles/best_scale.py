"""The best scale of a block on a diagonal quadratic, exactly.

With curvatures h the loss of rounding a block to nearest with scale s is ``f(s) = ½ Σ_j h_j (s c_j(s) - w_j)²``, where
``c_j(s)`` is the codebook value nearest to ``w_j / s`` (clipped to the codebook's range). Between the breakpoints
``s = w_j / m`` (m: midpoints of the codebook) the values c_j stay, and f is the parabola ``½ (A s² - 2 B s + C)`` with
``A = Σ h c²``, ``B = Σ h w c`` and ``C = Σ h w²``. For a given s no assignment beats the nearest one, so the parabola
of any assignment lies above f: of all the parabolas met on the way, the one with the least vertex, ``½ (C - B²/A)`` at
``s = B/A``, gives the global minimum of f, over all scales and all assignments. Sweeping the sorted breakpoints updates
A and B by one term each.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lotion_theory import Quantizer
from lotion_theory.rounders import Grid

CANDIDATES = 8
"""Parabolas compared once more with sums of their own, where the running sums are within rounding of each other."""


class ScaleOptimum(NamedTuple):
    """``scale``: s. ``loss``: ``½ Σ h (s c - w)²``. ``codes``: the values c (n,). ``pieces``: parabolas seen."""

    scale: float
    loss: float
    codes: np.ndarray
    pieces: int


class BlockScales(NamedTuple):
    """``grid``: the lattice of the best scales. ``point``: the weights rounded on it. ``loss``: summed over blocks."""

    grid: Grid
    point: np.ndarray
    loss: float


def best_scale(weights: np.ndarray, curvature: np.ndarray, levels: np.ndarray) -> ScaleOptimum:
    """The scale s > 0 that minimises ``½ Σ_j h_j (s · nearest(w_j / s) - w_j)²``, in O(n L log(n L)) time.

    ``weights``, ``curvature`` (not negative): (n,). ``levels``: codebook values, increasing, (L,). Weights beyond the
    last level are clipped to it. A block that no scale brings closer than zero does (its weights are zero wherever they
    matter, or of a sign that the levels lack) gets scale 1. The sums round: the loss is the least up to a relative
    error of about 1e-11. Raises ValueError for shapes that do not fit, levels that do not increase, negative curvature.
    """
    w, h, c = (np.asarray(x, dtype=np.float64) for x in (weights, curvature, levels))
    if w.ndim != 1 or w.shape != h.shape:
        raise ValueError(f"weights and curvature have shapes {w.shape} and {h.shape}, expected one shape (n,)")
    if c.ndim != 1 or not c.size or (np.diff(c) <= 0).any():
        raise ValueError("levels must be a non-empty increasing 1-D array")
    if not (h >= 0).all() or not np.isfinite(w).all() or not np.isfinite(h).all():
        raise ValueError("curvature must not be negative, and weights and curvature must be finite")
    bend, slope = _running_sums(w, h, c)
    useful = (bend > 0) & (slope > 0)
    if not useful.any():
        codes = _nearest(w, c)
        return ScaleOptimum(1.0, _loss(w, h, codes), codes, len(bend))
    drop = np.where(useful, slope**2 / np.where(useful, bend, 1.0), -np.inf)
    found = []
    for k in np.argsort(-drop, kind="stable")[:CANDIDATES]:
        if not useful[k]:
            break
        s = slope[k] / bend[k]
        codes = _nearest(w / s, c)
        own_bend = (h * codes**2).sum()
        s = float((h * w * codes).sum() / own_bend) if own_bend > 0 else float(s)
        found.append((_loss(w, h, s * codes), s, codes))
    loss, s, codes = min(found, key=lambda item: item[0])
    return ScaleOptimum(s, loss, codes, len(bend))


def best_scales(weights: np.ndarray, curvature: np.ndarray, q: Quantizer | str) -> BlockScales:
    """The best scale of every block of ``q``'s partition, and the weights rounded to nearest with them.

    ``weights``, ``curvature``: one shape. Only the codebook and the partition of ``q`` are used, not its scale rule.
    Raises ValueError for codebooks that are not from -c to c.
    """
    q = Quantizer.parse(q)
    if not q.codebook.balanced or q.codebook.is_complex:
        raise ValueError(f"format {q}: needs a codebook from -c to c, e.g. int4, e2m1, nf4")
    w, h = np.asarray(weights, dtype=np.float64), np.asarray(curvature, dtype=np.float64)
    if w.shape != h.shape:
        raise ValueError(f"weights and curvature have shapes {w.shape} and {h.shape}, expected one shape")
    blocks = zip(q.partition.to_blocks(w), q.partition.to_blocks(h), strict=True)
    scales = np.array([best_scale(a, b, q.codebook.values).scale for a, b in blocks])
    top = np.broadcast_to(float(q.codebook.high) * scales[:, None], q.partition.to_blocks(w).shape).reshape(w.shape)
    grid = Grid.balanced(np.ascontiguousarray(np.atleast_2d(top)), q.codebook)
    point = grid.nearest(np.atleast_2d(w)).reshape(w.shape)
    return BlockScales(grid, point, _loss(w, h, point))


def _running_sums(w: np.ndarray, h: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``A`` and ``B`` of all parabolas, from very large scales to very small ones."""
    bend, slope, breaks, steps = 0.0, 0.0, [], []
    for sign in (1.0, -1.0):
        side = w >= 0 if sign > 0 else w < 0
        size, weight, values = sign * w[side], h[side], np.sort(sign * levels)
        middles = (values[1:] + values[:-1]) / 2
        first = int(np.searchsorted(middles, 0.0, side="right"))  # the level of very small positive numbers
        middles, values = middles[first:], values[first:]
        bend += float((weight * values[0] ** 2).sum())
        slope += float((weight * size * values[0]).sum())
        breaks.append((size[:, None] / middles).ravel())
        steps.append((
            (weight[:, None] * np.diff(values**2)).ravel(),
            ((weight * size)[:, None] * np.diff(values)).ravel(),
        ))  # fmt: skip
    order = np.argsort(-np.concatenate(breaks), kind="stable")
    bends, slopes = (np.concatenate(parts)[order] for parts in zip(*steps, strict=True))
    return np.cumsum(np.concatenate([[bend], bends])), np.cumsum(np.concatenate([[slope], slopes]))


def _nearest(x: np.ndarray, levels: np.ndarray) -> np.ndarray:
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x)]


def _loss(w: np.ndarray, h: np.ndarray, point: np.ndarray) -> float:
    return float((h * (point - w) ** 2).sum() / 2)
