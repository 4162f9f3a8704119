"""GPTQ: one pass over the columns, each rounded after the errors of those before it have been compensated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream
from .base import Case, Rounder
from .conditional import ORDERS, column_order, sweep


def upper_factor(hessian: np.ndarray) -> np.ndarray:
    """Upper triangular R (n, n) with ``H = R Rᵀ``: the inverse of GPTQ's U, for which ``H⁻¹ = Uᵀ U``.

    Raises numpy.linalg.LinAlgError unless H is numerically positive definite.
    """
    return np.linalg.cholesky(hessian[::-1, ::-1])[::-1, ::-1]


def compensated_rounding(case: Case, columns: np.ndarray, damping: float = 0.01, block: int = 64) -> np.ndarray:
    """GPTQ (arXiv 2210.17323, algorithm 1) on the case's frozen lattice; (rows, n).

    Published form: ``q_i = Q(w_i)``, ``e_i = (w_i - q_i) / U_ii``, ``w_j -= e_i U_ij`` for j > i, with w changing as
    it goes and U the upper Cholesky factor of ``H⁻¹``. With ``R = U⁻¹`` and the unchanged weights W the same point is
    ``q_i = Q(W_i + Σ_{k<i} (W_k - q_k) R_ki / R_ii)``, which needs no inverse and is what is computed here. Without
    damping ``2 L = Σ e_i²``, ``e = Rᵀ (W - q)``. For a diagonal H it is RTN.

    ``columns``: order, a permutation (n,). ``damping``: multiple of the mean of H's diagonal that is added to it. Dead
    columns (``H_ii = 0``) are rounded from weight 0 and affect nothing; they count in the mean, so that scaling H
    changes nothing. ``block``: columns per matrix product, for speed only. Raises ValueError for negative damping, and
    where H is not positive definite even with it.
    """
    if damping < 0:
        raise ValueError(f"damping={damping}: needs at least 0")
    dead = case.curvature <= 0
    weights = np.where(dead, 0.0, case.weights)[:, columns]
    hessian = case.hessian[np.ix_(columns, columns)]
    diagonal = case.curvature + damping * case.curvature.mean()
    np.fill_diagonal(hessian, np.where(dead, 1.0, diagonal)[columns])
    try:
        factor = upper_factor(hessian)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"damping={damping}: the Hessian is not positive definite; needs a larger value") from error
    grid = case.grid.columns(columns)
    rounded = np.empty_like(weights)

    def decide(j: int, pull: np.ndarray) -> np.ndarray:
        column = grid.columns(slice(j, j + 1))
        rounded[:, j] = column.nearest((weights[:, j] + pull / factor[j, j])[:, None])[:, 0]
        return weights[:, j] - rounded[:, j]

    sweep(np.zeros_like(weights), factor, decide, block)
    out = np.empty_like(rounded)
    out[:, columns] = rounded
    return out


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
    return compensated_rounding(case, column_order(case, settings["order"], stream), settings["damping"])


ROUNDER = Rounder(
    name="gptq",
    run=_run,
    information="H",
    grid="fixed",
    source="GPTQ, arXiv 2210.17323, algorithm 1",
    evaluations="1 Cholesky, 1 product",
    settings={"order": "natural", "damping": 0.01},
    tuning={"order": ORDERS, "damping": (0.0, 0.01, 0.1)},
)
