"""Levels of absmax formats as constants for compiled loops: of training, and of the descent engine.

With ``k`` the integer nearest to ``w c / amax``, level ``k`` of symmetric integers bounds the cell of ``w`` on one
side, and its neighbour on ``w``'s side bounds it on the other. The quotient may be off by a few ulp; the neighbour is
half a step away, so the cell is right all the same. Level ``k`` is also the nearest one, unless the quotient is within
its error of a midpoint. The levels of other codebooks are looked up.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._lookups import on_line
from .._tables import constants
from .codebooks import Codebook
from .lattice import SpanLattice


class Plan(NamedTuple):
    """What the loops know of a codebook and a float type, in whose scalars numbers are.

    ``high``: the top code, 0 where levels are to be looked up. ``step_high + step_low``: 1 / top code, split so that
    ``k step_high`` is exact and ``k step_high + k step_low`` is level ``k`` of ``units``. ``lowest``, ``highest``:
    range of the largest magnitude in which the quotient is accurate. ``decided``: distance from ``k`` up to which level
    ``k`` is surely nearest. ``units``: the levels where the largest magnitude is 1. ``even``: whether a tie goes to the
    level.
    """

    high: Any
    step_high: Any
    step_low: Any
    lowest: Any
    highest: Any
    decided: Any
    units: np.ndarray
    even: np.ndarray


@lru_cache(maxsize=256)
def plan(book: Codebook, real: str) -> Plan:
    """The :class:`Plan` of a balanced codebook for ``real`` = "float32" or "float64"."""
    kind, info = np.dtype(real).type, np.finfo(real)
    units = constants(SpanLattice(book, real, np.ones((1, 1), real)).units, np.ones(1, real))
    found = on_line(units.tobytes(), real)
    integers = book.step == 1 and book.even == tuple(level % 2 == 0 for level in book.levels)
    high, step_high, step_low = (book.high, *found[1:]) if found is not None and integers else (0, 0.0, 0.0)

    # The quotient is rounded twice and so is a level, each time by eps / 2 of at most ``high`` steps: together 2 eps
    # high. Half as much again covers the products of such errors and the rounding of ``decided`` itself.
    return Plan(
        high=kind(high), step_high=kind(step_high), step_low=kind(step_low), lowest=kind(float(info.tiny) * 2.0**16),
        highest=kind(float(info.max) / 2.0**16), decided=kind(0.5 - 3 * float(info.eps) * float(high)),
        units=units, even=np.array(book.even),
    )  # fmt: skip


def largest_bits(bits: np.ndarray, mask: Any) -> Any:
    """Largest ``bits & mask``. Read as integers, magnitudes keep their order, infinity and NaN coming last."""
    integer = bits.dtype.type  # without it numba computes in 64 bits
    peak = integer(0)
    for j in range(bits.size):
        peak = max(peak, integer(bits[j] & mask))
    return peak
