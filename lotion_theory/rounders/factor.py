"""Factors of Hessians, damped, in float64; and what is said where there is none."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arrays import Array, astype, device, namespace
from .base import Case


def damped(case: Case, damping: float) -> Array:
    """H plus ``damping`` times the mean of its diagonal on the diagonal, in float64; (n, n).

    Dead columns (``H_ii <= 0``) get a diagonal of 1; they count in the mean, so that scaling H changes nothing. Raises
    ValueError for negative damping.
    """
    if not damping >= 0:
        raise ValueError(f"damping={damping}: needs at least 0")
    hessian = astype(case.hessian, "float64")
    curvature = astype(case.curvature, "float64")
    xp = namespace(hessian)
    diagonal = xp.where(curvature <= 0, 1 + 0 * curvature, curvature + damping * xp.mean(curvature))
    identity = xp.eye(len(hessian), dtype=hessian.dtype, device=device(hessian))
    return xp.where(identity > 0, diagonal[:, None], hessian)


def upper_factor(hessian: Array) -> Array:
    """Upper triangular R (n, n) with ``H = R Rᵀ``: the inverse of GPTQ's U, for which ``H⁻¹ = Uᵀ U``.

    Raises the library's LinAlgError unless H is numerically positive definite.
    """
    xp = namespace(hessian)
    return xp.flip(xp.linalg.cholesky(xp.flip(hessian)))


def factored(make: Callable[[], Array], damping: float) -> Array:
    """``make()``, a factor or an inverse; ValueError naming ``damping`` where the matrix has none."""
    try:
        out = make()
    except (np.linalg.LinAlgError, RuntimeError) as error:
        if not isinstance(error, np.linalg.LinAlgError) and type(error).__name__ not in ("LinAlgError", "_LinAlgError"):
            raise
        raise ValueError(f"damping={damping}: the Hessian is not positive definite; needs a larger value") from error
    return out
