"""GPTQ: one pass over the columns, each rounded after the errors of those before it have been compensated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import Stream
from .._arrays import Array, astype, dtype_name, namespace
from .base import Case, Rounder
from .factor import damped, factored, upper_factor
from .grid import Grid
from .places import Columns, turned
from .sweep import ORDERS, column_order, in_order, restored, sweep

Choice = Callable[[int, Array], tuple[Array, Array]]
"""Given a column's number and weights (rows,): the points chosen, and the values whose errors others are to mend."""


def to_nearest(grid: Grid) -> Choice:
    """GPTQ's choice: the nearest level."""
    columns = Columns(grid)

    def choose(j: int, x: Array) -> tuple[Array, Array]:
        points = columns.nearest(j, x)
        return points, points

    return choose


def compensated_rounding(
    case: Case,
    columns: np.ndarray,
    damping: float = 0.01,
    block: int = 64,
    choosing: Callable[[Grid], Choice] = to_nearest,
) -> Array:
    """GPTQ (arXiv 2210.17323, algorithm 1) on the case's frozen lattice; (rows, n).

    Published form: ``q_i = Q(w_i)``, ``e_i = (w_i - q_i) / U_ii``, ``w_j -= e_i U_ij`` for j > i, with w changing as
    it goes and U the upper Cholesky factor of ``H⁻¹``. With ``R = U⁻¹`` and the unchanged weights W the same point is
    ``q_i = Q(W_i + Σ_{k<i} (W_k - q_k) R_ki / R_ii)``, which needs no inverse and is what is computed here. Without
    damping ``2 L = Σ e_i²``, ``e = Rᵀ (W - q)``. For a diagonal H it is RTN.

    ``columns``: order, a permutation (n,). ``damping``: multiple of the mean of H's diagonal that is added to it. Dead
    columns (``H_ii = 0``) are rounded from weight 0 and affect nothing; they count in the mean, so that scaling H
    changes nothing. ``block``: columns per matrix product, for speed only. Raises ValueError for negative damping, and
    where H is not positive definite even with it. The factor is computed in float64, and once for a case in batches.

    ``choosing``: gives the rule by which columns of a lattice are rounded. A case with ``regrid`` gets the lattice of
    each group of columns from it, of the weights as they are then.
    """
    ordered = in_order(case, columns)
    spread, pivots = case.once(("gptq", damping, columns.tobytes()), lambda: _spread(ordered, damping))
    weights = turned(namespace(case.weights).where(ordered.curvature <= 0, 0 * ordered.weights, ordered.weights))
    signal, rounded = weights + 0, namespace(weights).empty_like(weights)
    choose, first, regrid = choosing(ordered.grid), 0, case.regrid

    def decide(j: int, now: Array) -> Array:
        rounded[j], value = choose(j - first, now)
        return weights[j] - value

    def enter(start: int, stop: int) -> None:
        nonlocal choose, first
        assert regrid is not None, "groups are entered for it"
        group, xp = slice(start, stop), namespace(weights)
        # The published weights at this point: solves for the moves that R carries on within the group.
        pull = (signal[group] - weights[group]) * pivots[group, None]
        inside = spread[group, group] * pivots[group]
        now = weights[group] + xp.linalg.solve(inside.T, pull)
        choose, first = choosing(regrid.find(now.T, case.place, group)), start

    if regrid is None:
        sweep(signal, spread, decide, block)
    else:
        if (columns != np.arange(len(columns))).any():
            raise ValueError("order: lattices found on the way need the natural order of columns")
        sweep(signal, spread, decide, block, enter, regrid.group)
    return restored(rounded.T, columns)


def _spread(case: Case, damping: float) -> tuple[Array, Array]:
    """``R_ki / R_ii`` (n, n) and ``R_ii`` (n,), in the type of the weights."""
    hessian = damped(case, damping)
    factor = factored(lambda: upper_factor(hessian), damping)
    pivots = namespace(factor).linalg.diagonal(factor)
    name = dtype_name(case.weights)
    return astype(factor / pivots, name), astype(pivots, name)


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
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
