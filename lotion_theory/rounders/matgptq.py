"""MatGPTQ: one code per weight whose leading bits are weights too, so that a model can be cut to fewer bits later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import Stream
from .._arrays import Array, alike, dtype_name, namespace
from .._tables import at_most
from .base import Case, Rounder
from .gptq import Choice, compensated_rounding
from .grid import Grid
from .places import Columns
from .sweep import ORDERS, column_order


def cut(codes: Array, width: int, bits: int) -> Array:
    """The leading ``width`` of the ``bits`` of integer ``codes``, as codes of ``bits`` whose other bits are 0.

    Codes are rounded by the first bit that is left out, and the highest ones saturate: what belongs to
    ``S_r(q) = min((q >> (b - r)) + ((q >> (b - r - 1)) & 1), 2^r - 1)``, shifted back.
    """
    if width == bits:
        return codes
    short = (codes >> (bits - width)) + ((codes >> (bits - width - 1)) & 1)
    return namespace(short).clip(short, 0, 2**width - 1) << (bits - width)


def bits_of(grid: Grid) -> int:
    """How many bits the codes of ``grid`` have; ValueError unless its units are 2^b on a line of integer positions."""
    count = len(grid.units)
    if Columns(grid.rows(slice(0, 1))).line is None or count & (count - 1):
        raise ValueError(f"matgptq cuts codes of b bits: needs 2^b evenly spaced levels, and the grid has {count}")
    return count.bit_length() - 1


def best_codes(widths: Sequence[int], weights: Sequence[float], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Which code minimises ``Σ_r λ_r (t - V_r(q))²`` over q, for every real position t; V_r: what ``cut`` leaves.

    It is ``codes[k]`` for t between ``bounds[k - 1]`` and ``bounds[k]``: the sum is ``B(q) - 2 t A(q)`` plus what does
    not depend on q, so these are the lines of a lower envelope.
    """
    values = np.array([cut(np.arange(2**bits), r, bits) for r in widths], dtype=np.float64)
    share = np.array(weights, dtype=np.float64)[:, None]
    slope, height = (share * values).sum(axis=0), (share * values**2).sum(axis=0)
    chosen: list[int] = []
    bounds: list[float] = []
    for q in np.lexsort((np.arange(2**bits), height, slope)):
        if chosen and slope[q] == slope[chosen[-1]]:
            continue
        while chosen:
            bound = (height[q] - height[chosen[-1]]) / (2 * (slope[q] - slope[chosen[-1]]))
            if not bounds or bound > bounds[-1]:
                break
            chosen.pop()
            bounds.pop()
        if chosen:
            bounds.append(bound)
        chosen.append(int(q))
    return np.array(chosen), np.array(bounds)


def choosing(grid: Grid, widths: Sequence[int], weights: Sequence[float]) -> Choice:
    """MatGPTQ's choice: the best code for all widths together, and the mean of what it means at each."""
    bits, columns, name = bits_of(grid), Columns(grid), dtype_name(grid.step)
    codes, bounds = best_codes(widths, weights, bits)
    mean = np.mean([grid.units[cut(codes, r, bits)] for r in widths], axis=0)
    bounds, chosen, mean = (alike(x.astype(name), grid.step) for x in (bounds, grid.units[codes], mean))

    def choose(j: int, x: Array) -> tuple[Array, Array]:
        place = at_most(bounds, columns.position(j, x))
        return columns.placed(j, chosen[place]), columns.placed(j, mean[place])

    return choose


def widths_losses(case: Case, points: Array, widths: Sequence[int]) -> dict[int, float]:
    """The loss of ``points`` cut to each of ``widths``."""
    codes, bits = case.grid.nearest_index(points), bits_of(case.grid)
    return {r: float(case.loss(case.grid.at(cut(codes, r, bits))[None])[0]) for r in widths}


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    bits, widths = bits_of(case.grid), tuple(settings["widths"])
    weights = tuple(settings["weights"] or len(widths) * (1.0,))
    if not widths or len(set(widths)) < len(widths) or not all(1 <= r <= bits for r in widths):
        raise ValueError(f"widths={widths}: valid: different numbers of bits from 1 to {bits}, those of the grid")
    if len(weights) != len(widths) or not all(weight > 0 for weight in weights):
        raise ValueError(f"weights={weights}: valid: a positive number for each of {len(widths)} widths")
    columns = column_order(case, settings["order"], stream)
    rule = partial(choosing, widths=widths, weights=weights)
    return compensated_rounding(case, columns, settings["damping"], choosing=rule)


# The published sweep hands on the plain mean of the errors at all widths; λ acts in the choice of codes alone.
ROUNDER = Rounder(
    name="matgptq",
    run=_run,
    information="H",
    grid="fixed",
    source="MatGPTQ, arXiv 2602.03537",
    evaluations="1 Cholesky, 1 product",
    settings={"widths": (3, 4, 8), "weights": None, "order": "natural", "damping": 0.01},
    tuning={"order": ORDERS, "damping": (0.001, 0.01, 0.1)},
)
