"""LOTION as a rounding scheme inside the cell of W: descend the exact smoothed loss to a vertex."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream, kernels
from .._arrays import Array, astype, dtype_name, namespace
from ._adam import check
from .base import Case, Rounder
from .conditional import settle


def smoothed_losses(case: Case, w: Array, lo: Array, hi: Array) -> Array:
    """``E L(RR(w)) = L(w) + ½ Σ H_jj (hi - w)(w - lo)`` of every row, (rows,); all arguments (rows, n) (claim C8).

    On the cell [lo, hi] it is the multilinear interpolation of L at the vertices (claim C10).
    """
    error = w - case.weights
    return ((error @ case.hessian) * error + case.curvature * kernels.variance(w, lo, hi)).sum(axis=1) / 2


def smoothed_slope(case: Case, w: Array, lo: Array, hi: Array, weight: float = 1.0) -> Array:
    """Gradient (rows, n) of L plus ``weight`` times the smoothing penalty, on a frozen lattice.

    On a level (``lo == hi``) the penalty contributes 0, which is between its one-sided derivatives.
    """
    return (w - case.weights) @ case.hessian + weight / 2 * case.curvature * kernels.variance_dw(w, lo, hi)


def step_sizes(case: Case) -> Array:
    """Per column the ``1 / Lipschitz`` step of projected gradient descent in one cell, (n,); 0 where H_jj = 0.

    There the smoothed loss has Hessian ``H - diag H``. With C the correlation matrix of H,
    ``H - diag H <= (λ_max(C) - 1) diag H``, so steps ``t / ((λ_max(C) - 1) H_jj)`` never increase it for ``t <= 2``,
    whatever the gaps of the lattice.
    """
    h = astype(case.curvature, "float64")
    xp = namespace(h)
    root = xp.where(h > 0, h, h + float("inf")) ** 0.5
    largest = float(xp.linalg.eigvalsh(astype(case.hessian, "float64") / root / root[:, None]).max()) - 1
    # Of a diagonal H the smoothed loss is linear in the cell; any long step will do.
    return astype(1 / (max(largest, 1e-3) * root**2), dtype_name(case.weights))


def descend(case: Case, w: Array, steps: int, step: float = 1.9) -> Array:
    """Projected gradient descent from ``w`` on the smoothed loss, in the cell of W, until it stands still.

    Its value never increases, for ``step`` in (0, 2]; ``step`` is in units of :func:`step_sizes`.
    """
    lo, hi = case.grid.bracket(case.weights)
    rates = step * case.once("step sizes", lambda: step_sizes(case))
    clip = namespace(w).clip
    for _ in range(steps):
        now = clip(w - rates * smoothed_slope(case, w, lo, hi), lo, hi)
        if bool((now == w).all()):
            break
        w = now
    return w


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("step", settings["step"], 0 < settings["step"] <= 2, "more than 0 and at most 2")
    check("starts", settings["starts"], settings["starts"] >= 1, "at least 1")
    xp = namespace(case.weights)
    lo, hi = case.grid.bracket(case.weights)
    own = xp.clip(case.weights, lo, hi)
    best, least = own, float("inf") + 0 * own[:, 0]
    for k in range(settings["starts"]):
        share = k / max(settings["starts"] - 1, 1)
        drawn = lo + (hi - lo) * case.uniforms(stream, k)
        start = xp.clip(own + share * (drawn - own), lo, hi)
        point = settle(case, descend(case, start, settings["steps"], settings["step"]), lo, hi)
        losses = smoothed_losses(case, point, lo, hi)  # a vertex has no penalty
        best, least = xp.where((losses < least)[:, None], point, best), xp.minimum(losses, least)
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
