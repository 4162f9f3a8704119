"""LOTION as a rounding scheme inside the cell of W: descend the exact smoothed loss to a vertex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream, kernels
from ._adam import check
from .base import Case, Rounder
from .conditional import sweep


def smoothed_losses(case: Case, w: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """``E L(RR(w)) = L(w) + ½ Σ H_jj (hi - w)(w - lo)`` of every row, (rows,); all arguments (rows, n) (claim C8).

    On the cell [lo, hi] it is the multilinear interpolation of L at the vertices (claim C10).
    """
    error = w - case.weights
    return ((error @ case.hessian) * error + case.curvature * kernels.variance(w, lo, hi)).sum(axis=1) / 2


def smoothed_slope(case: Case, w: np.ndarray, lo: np.ndarray, hi: np.ndarray, weight: float = 1.0) -> np.ndarray:
    """Gradient (rows, n) of L plus ``weight`` times the smoothing penalty, on a frozen lattice.

    On a level (``lo == hi``) the penalty contributes 0, which is between its one-sided derivatives.
    """
    return (w - case.weights) @ case.hessian + weight / 2 * case.curvature * kernels.variance_dw(w, lo, hi)


def settle(case: Case, w: np.ndarray, lo: np.ndarray, hi: np.ndarray) -> np.ndarray:
    """Round ``w`` in [lo, hi], all (rows, n), by conditional expectation: ``L(result) <= E L(RR(w))`` in every row.

    Columns in their order, each to the end with the lower expected loss, ties to ``hi`` (claim C12).
    """
    rounded = np.empty_like(w)

    def decide(j: int, slope: np.ndarray) -> np.ndarray:
        down, up = lo[:, j] - w[:, j], hi[:, j] - w[:, j]
        rise = slope * (up - down) + case.curvature[j] / 2 * (up**2 - down**2)
        rounded[:, j] = np.where(rise <= 0, hi[:, j], lo[:, j])
        return np.where(rise <= 0, up, down)

    sweep((w - case.weights) @ case.hessian, case.hessian, decide)
    return rounded


def step_sizes(case: Case) -> np.ndarray:
    """Per column the ``1 / Lipschitz`` step of projected gradient descent in one cell, (n,); 0 where H_jj = 0.

    There the smoothed loss has Hessian ``H - diag H``. With C the correlation matrix of H,
    ``H - diag H <= (λ_max(C) - 1) diag H``, so steps ``t / ((λ_max(C) - 1) H_jj)`` never increase it for ``t <= 2``,
    whatever the gaps of the lattice.
    """
    h = case.curvature
    root = np.sqrt(np.where(h > 0, h, np.inf))
    largest = np.linalg.eigvalsh(case.hessian / root / root[:, None]).max() - 1
    # Of a diagonal H the smoothed loss is linear in the cell; any long step will do.
    return 1 / (max(largest, 1e-3) * root**2)


def descend(case: Case, w: np.ndarray, steps: int, step: float = 1.9) -> np.ndarray:
    """Projected gradient descent from ``w`` on the smoothed loss, in the cell of W, until it stands still.

    Its value never increases, for ``step`` in (0, 2]; ``step`` is in units of :func:`step_sizes`.
    """
    lo, hi = case.grid.bracket(case.weights)
    rates = step * step_sizes(case)
    for _ in range(steps):
        now = np.clip(w - rates * smoothed_slope(case, w, lo, hi), lo, hi)
        if (now == w).all():
            break
        w = now
    return w


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("step", settings["step"], 0 < settings["step"] <= 2, "more than 0 and at most 2")
    check("starts", settings["starts"], settings["starts"] >= 1, "at least 1")
    lo, hi = case.grid.bracket(case.weights)
    own = np.clip(case.weights, lo, hi)
    best, least = own, np.full(len(own), np.inf)
    for k in range(settings["starts"]):
        share = k / max(settings["starts"] - 1, 1)
        drawn = lo + (hi - lo) * stream.uniforms(own.shape, k, dtype="float64")
        start = np.clip(own + share * (drawn - own), lo, hi)
        point = settle(case, descend(case, start, settings["steps"], settings["step"]), lo, hi)
        losses = smoothed_losses(case, point, lo, hi)  # a vertex has no penalty
        best, least = np.where((losses < least)[:, None], point, best), np.minimum(losses, least)
    return best


# The first start is W itself: E L(RR(W)) bounds the result from above. The others lie ever further on the way from W to
# points drawn uniformly from the cell, the last one at its end: far ones help in 10 dimensions, near ones in 256.
ROUNDER = Rounder(
    name="lotion_cell",
    run=_run,
    information="H",
    grid="fixed",
    source="LOTION, arXiv 2510.08757: its smoothed loss, minimised over the cell of W",
    evaluations="steps per start, 1 eigendecomposition",
    settings={"steps": 2000, "step": 1.9, "starts": 1},
    tuning={"starts": (1, 9)},
)
