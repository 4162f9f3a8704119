"""Rounding by the method of conditional expectations, and what it shares with other column-by-column schemes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .. import Stream
from .base import Case, Rounder

ORDERS = ("natural", "curvature", "random")


def column_order(case: Case, order: str, stream: Stream) -> np.ndarray:
    """The columns (n,) as they are ("natural"), by decreasing H_ii ("curvature"; equal ones as they are), or "random".

    Raises ValueError for another ``order``.
    """
    n = len(case.hessian)
    if order == "natural":
        return np.arange(n)
    if order == "curvature":
        return np.argsort(-case.curvature, kind="stable")
    if order == "random":
        return stream.numpy_generator().permutation(n)
    raise ValueError(f"unknown order {order!r}; valid: {', '.join(ORDERS)}")


def sweep(
    signal: np.ndarray, matrix: np.ndarray, decide: Callable[[int, np.ndarray], np.ndarray], block: int = 64
) -> None:
    """For each column j in turn, ``move = decide(j, signal[:, j])``, then ``signal[:, k] += move matrix[j, k]``, k > j.

    ``signal`` (rows, n) is changed in place; ``matrix`` is (n, n), ``move`` (rows,). Columns further right than the
    current ``block`` hear of its moves at once, by a matrix product. Moves do not depend on ``block`` but through the
    rounding of these sums.
    """
    n = signal.shape[1]
    for start in range(0, n, block):
        stop = min(start + block, n)
        moves = np.empty((len(signal), stop - start))
        for j in range(start, stop):
            move = decide(j, signal[:, j])
            moves[:, j - start] = move
            signal[:, j + 1 : stop] += move[:, None] * matrix[j, j + 1 : stop]
        signal[:, stop:] += moves @ matrix[start:stop, stop:]


def conditional_expectation(case: Case, columns: np.ndarray) -> np.ndarray:
    """Round column after column to the end of the cell with the lower conditional expectation of L (claim C12).

    With the columns before j rounded and those after it still random, going up rather than down changes the expected
    loss of a row by ``g_j (hi - lo) + ½ H_jj ((hi - w)² - (lo - w)²)``, g the gradient at the mean. The result
    (rows, n) has ``L <= E L(RR(W)) = ½ Σ H_jj (hi - w)(w - lo)`` in every row where no weight is clipped. Ties go to
    ``hi``. ``columns``: a permutation (n,). The same rule as :func:`lotion_theory.rounding.conditional_expectation`.
    """
    lo, hi = (part[:, columns] for part in case.grid.bracket(case.weights))
    weights, hessian = case.weights[:, columns], case.hessian[np.ix_(columns, columns)]
    mean = np.clip(weights, lo, hi)
    rounded = np.empty_like(mean)

    def decide(j: int, slope: np.ndarray) -> np.ndarray:
        down, up = lo[:, j] - mean[:, j], hi[:, j] - mean[:, j]
        rise = slope * (up - down) + hessian[j, j] / 2 * (up**2 - down**2)
        rounded[:, j] = np.where(rise <= 0, hi[:, j], lo[:, j])
        return np.where(rise <= 0, up, down)

    sweep((mean - weights) @ hessian, hessian, decide)
    out = np.empty_like(rounded)
    out[:, columns] = rounded
    return out


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
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
