"""Fast path for large numpy arrays: loops that check, place and round in one pass over the memory.

No formula is written here: the loops call the functions of ``_kernels``, compiled by numba, and the results are those of
the plain path bit for bit, the sign of zero included (a weight that rounds to zero becomes +0 on both paths). What is
particular to this file is how the two levels around a weight are found.

* Symmetric integers. With ``k`` the integer nearest to ``w c / amax``, level ``k`` is the nearest level or nearly so, and
  the cell is completed by its neighbour on ``w``'s side: an error of the quotient by a few ulp cannot matter, the neighbour
  being half a step away. Rounding to nearest takes level ``k`` unless the quotient is within its error of a midpoint.
* Everything else: a binary search among the block's levels. It serves the codebooks that are not uniform, blocks near
  the ends of the float range, where the quotient is no longer accurate, and the undecided weights above.
"""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _kernels
from ._arrays import constants
from .grids import Codebook
from .lattice import SpanLattice

if TYPE_CHECKING:
    from .quantizer import Quantizer

SMALLEST = 2**12
"""Arrays of fewer values always take the plain path: a call into the compiled loops has a fixed cost."""

WARM_UP = 2**22
"""Values that must have come by in this process before anything is compiled, which takes seconds."""

# Weights of a row that share one decision between the quotient and the search.
_CHUNK = 128
_INTEGERS = {"float32": ("int32", "uint32"), "float64": ("int64", "uint64")}


class Plan(NamedTuple):
    """What the loops need to know of a codebook and a float type; scalars are of the types of that float's bits or its own.

    ``magnitude``: the mask of all bits but the sign. ``one_bits``: the bits of 1. ``high``: the top code, 0 for codebooks
    to search. ``step_high + step_low``: 1 / top code, split so that ``k step_high`` is exact. ``lowest``, ``highest``:
    range of the largest magnitude for which the quotient is accurate. ``decided``: largest distance from ``k`` at which
    rounding to nearest is certain. ``units``: the levels for a largest magnitude of 1, padded with infinities to a power
    of two. ``even``: whether a tie goes to the level.
    """

    magnitude: Any
    all_bits: Any
    one_bits: Any
    zero: Any
    one: Any
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
    signed, unsigned = _INTEGERS[real]
    units = constants(SpanLattice(book, real, np.ones((1, 1), real)).units, np.ones(1, real))
    top = book.high
    integers = book.step == 1 and book.symmetric and book.even == tuple(c % 2 == 0 for c in book.levels)
    # 8 bits fewer than the type has: the product with any code (8 bits) is exact, and the sum is rounded once.
    scale = 2 ** (info.nmant - 7 + int(top).bit_length())
    step_high = Fraction(int(scale / top), scale)
    step = kind(step_high), kind(Fraction(1, 1) / top - step_high)
    codes = np.array([float(c) for c in book.levels], real)
    if not integers or not np.array_equal(codes * step[0] + codes * step[1], units):
        top = Fraction(0)
    # Quotient: two roundings; midpoint of two levels: two roundings; each of relative size eps / 2, at most `top` in
    # units of the step. That is 2 eps top; half as much again covers second-order terms with room to spare.
    return Plan(
        np.dtype(signed).type(np.iinfo(signed).max), np.dtype(unsigned).type(np.iinfo(unsigned).max), kind(1).view(unsigned), kind(0), kind(1), kind(top), *step,
        kind(info.tiny * 2.0**16), kind(info.max / 2.0**16), kind(0.5 - 3 * info.eps * float(top)), units, np.array(book.even),
    )  # fmt: skip


def quantize(
    quantizer: Quantizer, w: np.ndarray, uniforms: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray | None:
    """``quantizer.round(w, uniforms)``, or ``quantizer.cast(w)`` without uniforms; None where the plain path must do it.

    That is the case for other scale rules and types, arrays that are small or not contiguous, where numba is missing, and
    for every input the plain path would refuse (it then raises; what ``out`` holds after that is unspecified).
    """
    if not _serves(quantizer, w) or (uniforms is not None and not _alike(uniforms, w)):
        return None
    if (out is not None and not _alike(out, w)) or not _warm(w.size):
        return None
    rows = quantizer.partition.to_blocks(w)
    result = np.empty_like(w) if out is None else out
    signed, unsigned = _INTEGERS[w.dtype.name]
    arguments = (plan(quantizer.codebook, w.dtype.name), rows, rows.view(signed), result.reshape(rows.shape))
    cast_rows, round_rows = _loops()
    if uniforms is None:
        valid = cast_rows(*arguments)
    else:
        uniforms = uniforms.reshape(rows.shape)
        valid = round_rows(*arguments, uniforms, uniforms.view(unsigned))
    return result if valid else None


def _serves(quantizer: Quantizer, w: np.ndarray) -> bool:
    """Whether the loops cover this format and this array. For balanced codebooks ``gauge`` is ``absmax``."""
    if type(w) is not np.ndarray or w.size < SMALLEST or w.dtype.name not in _INTEGERS or not _plain(w):
        return False
    book = quantizer.codebook
    if quantizer.scale.name not in ("absmax", "gauge") or not book.balanced or book.is_complex:
        return False
    size = quantizer.partition.size
    return size is None or w.shape[-1] % size == 0


def _plain(x: np.ndarray) -> bool:
    return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative


def _alike(x: Any, w: np.ndarray) -> bool:
    return type(x) is np.ndarray and x.shape == w.shape and x.dtype == w.dtype and _plain(x)


# --- compilation -----------------------------------------------------------------------------------------------------

_waiting = WARM_UP


def _warm(size: int) -> bool:
    """Whether to use the compiled loops, after ``size`` more values: once enough came by to repay the compilation."""
    global _waiting
    _waiting = max(_waiting - size, 0)
    return _waiting == 0 and importlib.util.find_spec("numba") is not None


@lru_cache(maxsize=1)
def _loops() -> tuple[Any, Any]:
    import numba
    from numba.extending import register_jitable

    for formula in (_kernels.goes_up, _kernels.difference_error, _kernels.compare_distances, _peak, _count):
        register_jitable(formula)
    # No fastmath, which would void comparisons with NaN and signed zeros; no cache, which misses edits of _kernels.
    jit = numba.njit(nogil=True, error_model="numpy")
    return jit(_cast_rows), jit(_round_rows)


# --- loops; everything below is compiled -----------------------------------------------------------------------------


def _peak(bits: np.ndarray, mask: Any) -> Any:
    """Largest of ``bits & mask``. Magnitudes keep their order when read as integers, NaN and infinity coming last."""
    integer = bits.dtype.type  # numba would widen to 64 bits
    peak = integer(0)
    for j in range(bits.size):
        peak = max(peak, integer(bits[j] & mask))
    return peak


def _count(x: np.ndarray, top: Any, units: np.ndarray, count: np.ndarray) -> None:
    """``count[j]``: how many of the levels ``top * units`` are ``<= x[j]``."""
    for j in range(x.size):
        count[j] = 0
    for i in range(units.size):
        level = top * units[i]
        for j in range(x.size):
            count[j] += x[j] >= level


def _cast_rows(plan: Plan, w: np.ndarray, bits: np.ndarray, out: np.ndarray) -> bool:
    """Round every row of ``w`` to nearest into ``out``; False if a value is not finite."""
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    count = np.empty(_CHUNK, np.int32)
    last = plan.units.size - 1
    for b in range(w.shape[0]):
        peak_bits[0] = _peak(bits[b], plan.magnitude)
        top = peak[0]
        if not np.isfinite(top):
            return False
        accurate = plan.high > 0 and (top == 0 or (plan.lowest <= top and top <= plan.highest))
        inverse = plan.high / (top if top > 0 else plan.highest)
        for start in range(0, w.shape[1], _CHUNK):
            x, y = w[b, start : start + _CHUNK], out[b, start : start + _CHUNK]
            doubt = not accurate
            if accurate:
                for j in range(x.size):
                    place = x[j] * inverse
                    k = np.rint(place) + plan.zero  # which makes -0 a +0
                    y[j] = top * (k * plan.step_high + k * plan.step_low)
                    doubt |= abs(place - k) > plan.decided
            if doubt:
                _count(x, top, plan.units, count)
                for j in range(x.size):
                    i = count[j] - 1
                    above = min(i + 1, last)
                    lo, hi = top * plan.units[i], top * plan.units[above]
                    nearer, tie = _kernels.compare_distances(x[j], lo, hi)
                    y[j] = hi if (lo < x[j]) & (nearer | (tie & plan.even[above])) else lo
    return True


def _round_rows(
    plan: Plan, w: np.ndarray, bits: np.ndarray, out: np.ndarray, uniforms: np.ndarray, uniform_bits: np.ndarray
) -> bool:
    """Randomized rounding of every row; False if a value is not finite or a uniform is outside [0, 1)."""
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    count = np.empty(_CHUNK, np.int32)
    last = plan.units.size - 1
    for b in range(w.shape[0]):
        peak_bits[0] = _peak(bits[b], plan.magnitude)
        top = peak[0]
        # Read as unsigned integers, the floats of [0, 1) are below 1 and all others (NaN, negative) are not.
        if not np.isfinite(top) or _peak(uniform_bits[b], plan.all_bits) >= plan.one_bits:
            return False
        if plan.high > 0 and (top == 0 or (plan.lowest <= top and top <= plan.highest)):
            x, u, y = w[b], uniforms[b], out[b]
            inverse = plan.high / (top if top > 0 else plan.highest)
            for j in range(x.size):
                k = np.rint(x[j] * inverse) + plan.zero
                near = top * (k * plan.step_high + k * plan.step_low)
                right = x[j] >= near
                k += np.copysign(plan.one, x[j] - near)
                far = top * (k * plan.step_high + k * plan.step_low)
                lo, hi = near if right else far, far if right else near
                y[j] = hi if _kernels.goes_up(x[j], lo, hi, u[j]) else lo
        else:
            for start in range(0, w.shape[1], _CHUNK):
                x, u, y = w[b, start : start + _CHUNK], uniforms[b, start : start + _CHUNK], out[b, start : start + _CHUNK]
                _count(x, top, plan.units, count)
                for j in range(x.size):
                    i = count[j] - 1
                    lo, hi = top * plan.units[i], top * plan.units[min(i + 1, last)]
                    y[j] = hi if _kernels.goes_up(x[j], lo, hi, u[j]) else lo
    return True
