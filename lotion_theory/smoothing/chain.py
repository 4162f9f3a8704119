"""Chain rule from the parts of a rounding law back to the weights, the moving lattice included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import kernels
from ..formats.law import Branch
from ..formats.quantizer import Quantizer


@dataclass
class Partials:
    """Partial derivatives of a scalar in one branch's parts: ``target``, ``lo``, ``hi`` of shape (blocks, n) and
    ``prob`` of shape (blocks, 1), taken as if these were independent. None stands for zero. Of several scalars, each
    with a leading axis."""

    target: np.ndarray
    lo: np.ndarray | None = None
    hi: np.ndarray | None = None
    prob: np.ndarray | None = None


def pull_back(
    q: Quantizer, w: np.ndarray, branches: list[Branch], partials: list[Partials], moving: bool
) -> np.ndarray:
    """Gradient in ``w``, same shape, of a scalar whose partial derivatives per branch are given; of several, one each.

    ``moving``: the lattice follows the weights that set its scale (claim C15); otherwise levels are held fixed and only
    the probability of a drawn lattice still depends on the weights, since without it an SR scale is biased.
    Weights on a level are differentiated as if rounding left them alone, i.e. along the lattice.
    """
    x, dtype = q.blocks(w)
    jacobian = q.scale.jacobian(x, q.codebook, dtype)
    gradient = 0 * x
    for branch, part in zip(branches, partials, strict=True):
        draw, cell = branch
        in_p: Any = 0
        clipped = (x > cell.hi) | (x < cell.lo)
        if draw.mixture is None:
            direct = np.where(clipped, 0 * x, part.target)
        else:
            threshold, p, _ = draw.mixture
            size, sign = abs(x), np.where(x < 0, -1, 1)
            safe = p + (p == 0)
            spread = (size > threshold) & (p < 1)
            largest = size == size.max(axis=1, keepdims=True)
            clipped = clipped & ~spread
            direct = np.where(
                spread, np.where(largest, 0 * x, part.target / safe), np.where(clipped, 0 * x, part.target)
            )
            # m = (|w| - (1-p)T)/p: dm/dp = (T - |w|)/p², except for the largest one, whose mean is T⁺ whatever p is.
            # Divided by p one at a time, as 1/p² may overflow; the partial derivative is a multiple of p.
            slope = np.where(spread & ~largest, sign * ((threshold - size) / safe), 0 * x)
            in_p = (part.target / safe * slope).sum(axis=-1, keepdims=True)
        if part.prob is not None:
            in_p = in_p + draw.sign * part.prob
        gradient = gradient + direct
        if jacobian.p is not None:
            gradient = gradient + in_p * jacobian.p
        if moving:
            gradient = gradient + _through_anchors(draw.lattice, cell, part, clipped, jacobian)
    if q.codebook.is_complex:
        raise ValueError("gradients are implemented for real weights; a complex weight is its pair (Re + Im, Re - Im)")
    return gradient.reshape(*gradient.shape[:-2], *w.shape)


def _through_anchors(lattice, cell, part, clipped, jacobian) -> np.ndarray:
    """The share of the gradient that goes through the levels into the weights that set the anchors."""
    if jacobian.top is None and jacobian.bottom is None and jacobian.shared is None:
        return 0 * cell.lo
    low, high = lattice.coefficients(cell.index_lo), lattice.coefficients(cell.index_hi)
    totals: list[Any] = []
    for c_lo, c_hi in zip(low, high, strict=True):
        if c_lo is None:
            totals.append(None)
            continue
        flow = np.where(clipped, part.target * c_hi, 0 * cell.lo)
        if part.lo is not None:
            flow = flow + part.lo * c_lo + part.hi * c_hi
        totals.append(flow.sum(axis=-1, keepdims=True))
    out = 0 * cell.lo
    if jacobian.top is not None:
        out = out + totals[0] * jacobian.top
    if jacobian.bottom is not None and totals[1] is not None:
        out = out + totals[1] * jacobian.bottom
    if jacobian.shared is not None:
        factor, rate = jacobian.shared
        out = out + (totals[0] * factor).sum(axis=(-2, -1), keepdims=True) * rate
    return out


def variance_partials(branch: Branch, weight: np.ndarray) -> Partials:
    """Partials of ``Σ weight · (hi - m)(m - lo)``."""
    m, lo, hi = branch.cell.target, branch.cell.lo, branch.cell.hi
    return Partials(
        weight * kernels.variance_dw(m, lo, hi),
        weight * kernels.variance_dlo(m, lo, hi),
        weight * kernels.variance_dhi(m, lo, hi),
    )
