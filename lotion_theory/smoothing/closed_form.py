"""Closed forms: exact for quadratics, second order for everything else."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import kernels
from .._arrays import plain, to_numpy, wide
from ..formats.law import Branch
from ..formats.quantizer import Quantizer
from .chain import Partials, pull_back, variance_partials
from .losses import Quadratic, slopes_of, total, values_of


def _one(branches: list[Branch]) -> list[Any]:
    return [1 if b.prob is None else b.prob for b in branches]


def penalty(w: np.ndarray, q: Quantizer, curvature: np.ndarray) -> float:
    """LOTION's penalty ``½ Σ g_ii Var(RR(w)_i)``, ``curvature`` ``g`` in ``w``'s shape (arXiv 2510.08757)."""
    # In the working type: q.variance(w) is of w's own type, in which a float16 variance underflows.
    law = q.block_law(w)
    return total(np.asarray(curvature).reshape(law.x.shape) * law.variance()) / 2


def _couplings(loss: Quadratic, branches: list[Branch]) -> tuple[Any, np.ndarray, np.ndarray]:
    """``p``, ``δ`` and ``H_BB δ``: how probable a block's second lattice is, and how far the conditional means on its
    two lattices lie apart."""
    apart = branches[1].cell.target - branches[0].cell.target
    return branches[1].prob, apart, loss.block_products(apart)


def smoothed_loss(loss: Quadratic, w: np.ndarray, q: Quantizer | str) -> float:
    """``E[L(RR(w))] = L(E RR(w)) + ½ tr(H Σ)``, exact for any Hessian (claim C8).

    With an ordinary scale the roundings are independent, ``Σ`` is diagonal and only ``H``'s diagonal enters. With an SR
    scale the weights of a block share the draw: ``Σ_B = diag(E Var) + p(1-p) δ δᵀ``, ``δ`` the difference of the
    conditional means, so ``H``'s diagonal blocks enter as well.
    """
    q = Quantizer.parse(q)
    _need_quadratic(loss, q)
    law = q.block_law(w)
    x, branches = law.x, law.branches
    mean = law.mean().reshape(np.shape(w))
    inner = sum(
        weight * kernels.variance(b.cell.target, b.cell.lo, b.cell.hi)
        for weight, b in zip(_one(branches), branches, strict=True)
    )
    value = loss(mean[None])[0] + total(loss.curvature.reshape(x.shape) * inner) / 2
    if len(branches) == 2:
        p, apart, product = _couplings(loss, branches)
        value = value + total(p * (1 - p) * apart * product) / 2
    return value


def smoothed_gradient(loss: Quadratic, w: np.ndarray, q: Quantizer | str, moving: bool = True) -> np.ndarray:
    """Gradient of :func:`smoothed_loss` in ``w``; ``moving=False`` holds the lattice fixed (the detached form)."""
    q = Quantizer.parse(q)
    _need_quadratic(loss, q)
    law = q.block_law(w)
    x, branches = law.x, law.branches
    mean = law.mean()
    pull = loss.gradient(mean.reshape(1, *np.shape(w)))[0].reshape(x.shape)
    curvature = loss.curvature.reshape(x.shape)
    partials = []
    for weight, b in zip(_one(branches), branches, strict=True):
        part = variance_partials(b, weight * curvature / 2)
        part.target = part.target + weight * pull
        if b.prob is not None:
            spread = kernels.variance(b.cell.target, b.cell.lo, b.cell.hi)
            part.prob = (pull * b.cell.target + curvature * spread / 2).sum(axis=1, keepdims=True)
        partials.append(part)
    if len(branches) == 2:
        p, apart, product = _couplings(loss, branches)
        partials[0].target = partials[0].target - p * (1 - p) * product
        partials[1].target = partials[1].target + p * (1 - p) * product
        partials[1].prob = partials[1].prob + (1 - 2 * p) * (apart * product).sum(axis=1, keepdims=True) / 2
    return pull_back(q, w, branches, partials, moving)


def second_order_loss(loss, w: np.ndarray, q: Quantizer | str, curvature: np.ndarray, ramp: float = 1) -> float:
    """``L(w) + ramp · ½ Σ g_ii Var_i`` for any loss: the Gauss-Newton form of LOTION; remainder O(s³) (claim C9)."""
    q = Quantizer.parse(q)
    return values_of(loss, wide(np.asarray(w))[None])[0] + ramp * penalty(w, q, _curvature(curvature, w))


def second_order_gradient(
    loss, w: np.ndarray, q: Quantizer | str, curvature: np.ndarray, moving: bool = True, ramp: float = 1
) -> np.ndarray:
    """Gradient of :func:`second_order_loss` with the curvature held constant, as LOTION does."""
    q = Quantizer.parse(q)
    return slopes_of(loss, np.asarray(w)[None])[0] + ramp * penalty_gradient(w, q, curvature, moving)


def penalty_gradient(w: np.ndarray, q: Quantizer | str, curvature: np.ndarray, moving: bool = True) -> np.ndarray:
    """Gradient of :func:`penalty` with ``curvature`` held constant; for SR scales through the draw as well."""
    q = Quantizer.parse(q)
    law = q.block_law(w)
    x, branches = law.x, law.branches
    g = _curvature(curvature, w).reshape(x.shape)
    mean = law.mean()
    partials: list[Partials] = []
    for weight, b in zip(_one(branches), branches, strict=True):
        part = variance_partials(b, weight * g / 2)
        if b.prob is not None:
            # Var = Σ prob (var + m²) - mean².
            part.target = part.target + weight * g * (b.cell.target - mean)
            spread = kernels.variance(b.cell.target, b.cell.lo, b.cell.hi) + b.cell.target * (b.cell.target - 2 * mean)
            part.prob = (g * spread / 2).sum(axis=1, keepdims=True)
        partials.append(part)
    return pull_back(q, w, branches, partials, moving)


def _curvature(curvature: np.ndarray, w: np.ndarray) -> np.ndarray:
    curvature = to_numpy(plain(curvature, "curvature"))
    if curvature.shape != np.shape(w):
        raise ValueError(f"curvature has shape {curvature.shape}, expected that of w, {np.shape(w)}")
    return curvature


def _need_quadratic(loss: Any, q: Quantizer) -> None:
    if q.codebook.is_complex:
        raise ValueError(f"closed forms are for real weights; {q} is complex: use 'exact' or 'monte_carlo'")
    if not isinstance(loss, Quadratic):
        raise ValueError(
            "method 'closed_form' is exact for Quadratic losses only; use 'second_order', 'exact' or 'monte_carlo'"
        )
