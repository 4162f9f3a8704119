"""Randomized rounding (RR), or the best of several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream, kernels
from .._arrays import Array, namespace
from .base import Case, Rounder


def best_of(case: Case, draws: int, stream: Stream) -> Array:
    """The best of ``draws`` independent randomized roundings of the weights, for each row by its own loss; (rows, n).

    Draw k takes its uniforms from step k of ``stream``: more draws only add to fewer. With one draw no loss is
    computed. Raises ValueError for less than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws={draws}: needs at least 1")
    lo, hi = case.grid.bracket(case.weights)
    best, lowest = namespace(lo).empty_like(lo), float("inf") + 0 * lo[:, 0]
    for k in range(draws):
        points = kernels.pick(case.weights, lo, hi, case.uniforms(stream, k))
        if draws == 1:
            return points
        loss = case.row_losses(points)
        better = loss < lowest
        best[better], lowest[better] = points[better], loss[better]
    return best


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    return best_of(case, settings["draws"], stream)


ROUNDER = Rounder(
    name="rr",
    run=_run,
    information="none; H where draws > 1",
    grid="fixed",
    source="standard (stochastic rounding); LOTION, arXiv 2510.08757",
    evaluations="draws losses; none for 1 draw",
    settings={"draws": 1},
    tuning={"draws": (1, 8, 64)},
)
