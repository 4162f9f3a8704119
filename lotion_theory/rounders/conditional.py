"""Rounding by the method of conditional expectations, and what it shares with other column-by-column schemes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream
from .._arrays import Array, namespace
from .base import Case, Rounder
from .places import turned
from .sweep import ORDERS, column_order, in_order, restored, sweep


def conditional_expectation(case: Case, columns: np.ndarray) -> Array:
    """Round column after column to the end of the cell with the lower conditional expectation of L (claim C12).

    The result (rows, n) has ``L <= E L(RR(W)) = ½ Σ H_jj (hi - w)(w - lo)`` in every row where no weight is clipped.
    Ties go to ``hi``. ``columns``: a permutation (n,). The same rule as
    :func:`lotion_theory.rounding.conditional_expectation`.
    """
    ordered = in_order(case, columns)
    lo, hi = ordered.grid.bracket(ordered.weights)
    return restored(settle(ordered, namespace(lo).clip(ordered.weights, lo, hi), lo, hi), columns)


def settle(case: Case, w: Array, lo: Array, hi: Array) -> Array:
    """Round ``w`` in [lo, hi], all (rows, n), by conditional expectation: ``L(result) <= E L(RR(w))`` in every row.

    Columns in their order, each to the end with the lower expected loss, ties to ``hi`` (claim C12). With the columns
    before j rounded and those after it still random, going up rather than down changes the expected loss of a row by
    ``g_j (hi - lo) + ½ H_jj ((hi - w)² - (lo - w)²)``, g the gradient at the mean.
    """
    down, up = turned(lo - w), turned(hi - w)
    width, bend = up - down, up**2 - down**2
    half = (case.curvature / 2).tolist()
    where, goes_up = namespace(w).where, width > 0

    def decide(j: int, slope: Array) -> Array:
        goes_up[j] = slope * width[j] + half[j] * bend[j] <= 0
        return where(goes_up[j], up[j], down[j])

    sweep(turned((w - case.weights) @ case.hessian), case.hessian, decide)
    return where(goes_up.T, hi, lo)


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    return conditional_expectation(case, column_order(case, settings["order"], stream))


ROUNDER = Rounder(
    name="conditional_expectation",
    run=_run,
    information="H",
    grid="fixed",
    source="method of conditional expectations (Erdős and Selfridge 1973; Spencer 1977), on the law of RR",
    evaluations="1 product",
    settings={"order": "natural"},
    tuning={"order": ORDERS},
)
