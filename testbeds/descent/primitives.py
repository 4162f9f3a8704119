"""What the compiled loops of every rule share: levels around a weight, sums in lanes, the optimizer's step.

All give the bits of :mod:`.plain`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType
from typing import Any

import numpy as np

from lotion_theory import functions, kernels


@lru_cache(maxsize=1)
def shared() -> tuple[Any, ...]:
    """Compiled parts that no rule changes: levels around a weight, sums in lanes, the optimizer."""
    import llvmlite.binding
    from numba.extending import overload, register_jitable

    # A loop over some ten arrays is vectorised only if LLVM may check at run time that none overlaps another; its
    # default stops at eight such checks.
    llvmlite.binding.set_option("", "-runtime-memory-check-threshold=128")
    for name in dir(kernels):
        value = getattr(kernels, name)
        if callable(value) and not name.startswith("__"):
            register_jitable(value)
    overload(functions.exp)(lambda x: _exp)
    overload(functions.tanh)(lambda x: _tanh)
    overload(functions.cos)(lambda x: _cos)
    return tuple(map(compiler(), (_quotient, _search, _lane_sum, _peak, _adam)))


def _exp(x):
    return np.exp(x)


def _tanh(x):
    return np.tanh(x)


def _cos(x):
    return np.cos(x)


def _quotient(x, top, inverse, grid):
    """``(lo, hi, near, unit_lo, unit_hi, unit_near)`` of a weight on a lattice of integers, without a branch.

    The integer nearest to ``x / step`` bounds the cell on one side (see :mod:`lotion_theory.formats.compiled`), its
    neighbour on the weight's side on the other. On a level, and beyond the ends, both are that level.
    """
    k = min(max(np.rint(x * inverse), -grid.high), grid.high)
    unit = k * grid.step_high + k * grid.step_low
    level = top * unit
    side = np.copysign(1.0, x - level)
    off = (x != level) & (abs(k + side) <= grid.high)
    other_k = k + side * off
    other_unit = other_k * grid.step_high + other_k * grid.step_low
    other = top * other_unit
    k_hi = max(k, other_k)
    lo, hi = min(level, other), max(level, other)
    unit_lo, unit_hi = min(unit, other_unit), max(unit, other_unit)
    nearer, tie = kernels.compare_distances(min(max(x, lo), hi), lo, hi)
    up = nearer | (tie & (k_hi == 2 * np.floor(k_hi * 0.5)))
    return lo, hi, hi if up else lo, unit_lo, unit_hi, unit_hi if up else unit_lo


def _search(x, top, grid):
    """The same on any lattice, by bisection."""
    below, above = 0, grid.units.size - 1
    while above - below > 1:
        middle = (below + above) // 2
        if x >= top * grid.units[middle]:
            below = middle
        else:
            above = middle
    if x <= top * grid.units[below]:
        above = below
    elif x >= top * grid.units[above]:
        below = above
    unit_lo, unit_hi = grid.units[below], grid.units[above]
    lo, hi = top * unit_lo, top * unit_hi
    nearer, tie = kernels.compare_distances(min(max(x, lo), hi), lo, hi)
    if nearer | (tie & grid.even[above]):
        return lo, hi, hi, unit_lo, unit_hi, unit_hi
    return lo, hi, lo, unit_lo, unit_hi, unit_lo


def _lane_sum(x):
    """Sum of ``x`` in the order of :func:`.plain.lane_sum`. Lanes with names, as LLVM keeps an array in memory."""
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = 0.0
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        s0 += x[i]
        s1 += x[i + 1]
        s2 += x[i + 2]
        s3 += x[i + 3]
        s4 += x[i + 4]
        s5 += x[i + 5]
        s6 += x[i + 6]
        s7 += x[i + 7]
    rest = x.size - whole
    s0 += x[whole] if rest > 0 else 0.0
    s1 += x[whole + 1] if rest > 1 else 0.0
    s2 += x[whole + 2] if rest > 2 else 0.0
    s3 += x[whole + 3] if rest > 3 else 0.0
    s4 += x[whole + 4] if rest > 4 else 0.0
    s5 += x[whole + 5] if rest > 5 else 0.0
    s6 += x[whole + 6] if rest > 6 else 0.0
    return s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7


def _peak(x):
    """Largest magnitude."""
    lanes = np.zeros(8)
    whole = x.size // 8 * 8
    for i in range(0, whole, 8):
        for j in range(8):
            size = abs(x[i + j])
            lanes[j] = size if size > lanes[j] else lanes[j]
    peak = 0.0
    for j in range(8):
        peak = max(peak, lanes[j])
    for i in range(whole, x.size):
        peak = max(peak, abs(x[i]))
    return peak


def _adam(x, m, v, d, n, pace):
    """Adam's step on one number: its new value and moments."""
    m = n.beta1 * m + (1 - n.beta1) * d
    v = n.beta2 * v + (1 - n.beta2) * (d * d)
    return x - pace.rate * ((m * pace.first) / (np.sqrt(v * pace.second) + n.epsilon)), m, v


def compiler() -> Callable:
    """What compiles a function for the loops. Raises ImportError without numba."""
    import numba

    return numba.njit(error_model="numpy", nogil=True)


def register_helpers(function: Callable | None) -> None:
    """Let numba call the plain functions of a rule's own module that ``function`` names, and those that they name."""
    from numba.extending import register_jitable

    if function is None:
        return
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if isinstance(value, FunctionType) and value.__module__ == function.__module__ and value not in _registered:
            _registered.add(value)
            register_jitable(value)
            register_helpers(value)


_registered: set[FunctionType] = set()
