"""Fast path for large numpy arrays: loops that check, place and round in one pass over the memory.

No formula is written here: the loops call the functions of ``kernels``, compiled by numba, and give the results of the
plain path bit for bit, down to the sign of zero (+0 on both). What is particular to this file is how the two levels
around a weight are found.

* Symmetric integers. With ``k`` the integer nearest to ``w c / amax``, level ``k`` bounds the cell on one side, and its
  neighbour on ``w``'s side bounds it on the other. The quotient may be off by a few ulp; the neighbour is half a step
  away, so the cell is right all the same. Level ``k`` is also the nearest one, unless the quotient is within its error
  of a midpoint.
* Everything else: the levels ``<= w`` are counted. This serves codebooks that are not uniform, blocks near the ends of
  the float range, where the quotient is not accurate, and the undecided weights above.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import kernels
from .._arrays import constants
from .codebooks import Codebook
from .lattice import SpanLattice
from .partition import Partition

# Smaller arrays always take the plain path.
_SMALLEST = 1 << 10

# Compiling takes seconds, about as long as the plain path needs for this many weights: waiting for that demand at most
# doubles the cost of any program. A call costs the plain path about as much as _CALL_COST weights, however few it has.
_COMPILE_AFTER = 1 << 25
_CALL_COST = 1 << 13

# Weights of a row that are decided together, by the quotient or by counting.
_CHUNK = 128

_INTEGERS = {"float32": ("int32", "uint32"), "float64": ("int64", "uint64")}


class Format(Protocol):
    """What is asked of a quantizer here."""

    @property
    def codebook(self) -> Codebook: ...
    @property
    def partition(self) -> Partition: ...
    @property
    def is_absmax(self) -> bool: ...


class Plan(NamedTuple):
    """What the loops know of a codebook and a float type. Scalars are of that type, or integers of its width.

    ``magnitude``, ``all_bits``: masks, without and with the sign bit. ``one_bits``: the bits of 1. ``high``: the top
    code, 0 where levels are to be counted. ``step_high + step_low``: 1 / top code, split so that ``k step_high`` is
    exact and ``k step_high + k step_low`` is level ``k`` of ``units``. ``lowest``, ``highest``: range of the largest
    magnitude in which the quotient is accurate. ``decided``: distance from ``k`` up to which level ``k`` is surely
    nearest. ``huge``: size from which decisions are made on quarters. ``units``: the levels where the largest
    magnitude is 1. ``even``: whether a tie goes to the level.
    """

    magnitude: Any
    all_bits: Any
    one_bits: Any
    zero: Any
    one: Any
    quarter: Any
    high: Any
    step_high: Any
    step_low: Any
    lowest: Any
    highest: Any
    decided: Any
    huge: Any
    units: np.ndarray
    even: np.ndarray


@lru_cache(maxsize=256)
def plan(book: Codebook, real: str) -> Plan:
    """The :class:`Plan` of a balanced codebook for ``real`` = "float32" or "float64"."""
    kind, info = np.dtype(real).type, np.finfo(real)
    signed, unsigned = (np.dtype(name).type for name in _INTEGERS[real])
    units = constants(SpanLattice(book, real, np.ones((1, 1), real)).units, np.ones(1, real))
    high = book.high

    # Cut 8 bits short of the type's width, the high part times a code of 8 bits is exact, and the sum rounds once.
    scale = Fraction(2) ** (info.nmant - 8 + int(high).bit_length())
    step_high = kind(int(scale / high) / scale)
    step_low = kind(1 / high - Fraction(float(step_high)))
    codes = book.values.astype(real)
    integers = book.step == 1 and book.even == tuple(level % 2 == 0 for level in book.levels)
    if not integers or not np.array_equal(codes * step_high + codes * step_low, units):
        high = Fraction(0)

    # The quotient is rounded twice and so is a level, each time by eps / 2 of at most ``high`` steps: together 2 eps
    # high. Half as much again covers the products of such errors and the rounding of ``decided`` itself.
    return Plan(
        magnitude=signed(np.iinfo(signed).max), all_bits=unsigned(np.iinfo(unsigned).max),
        one_bits=kind(1).view(unsigned), zero=kind(0), one=kind(1), quarter=kind(0.25),
        high=kind(high), step_high=step_high, step_low=step_low, lowest=kind(float(info.tiny) * 2.0**16),
        highest=kind(float(info.max) / 2.0**16), decided=kind(0.5 - 3 * float(info.eps) * float(high)),
        huge=kind(float(info.max) / 4), units=units, even=np.array(book.even),
    )  # fmt: skip


def quantize(
    quantizer: Format, w: np.ndarray, uniforms: np.ndarray | None = None, out: np.ndarray | None = None
) -> np.ndarray | None:
    """``quantizer.round(w, uniforms)``, or ``quantizer.cast(w)`` without uniforms; None to ask for the plain path.

    None is the answer for other scale rules and types, for arrays that are small or not contiguous, where numba is
    missing, until compiling pays, and for all that the plain path refuses (it then raises; ``out`` may be overwritten).
    """
    if not _serves(quantizer, w) or not all(_alike(x, w) for x in (uniforms, out) if x is not None):
        return None
    if out is not None and not out.flags.writeable:
        return None
    loops = _in_demand(w.size)
    if loops is None:
        return None
    cast_rows, round_rows = loops
    result = np.empty_like(w) if out is None else out
    signed, unsigned = _INTEGERS[w.dtype.name]
    rows = quantizer.partition.to_blocks(w)
    arguments = (plan(quantizer.codebook, w.dtype.name), rows, rows.view(signed), result.reshape(rows.shape))
    if uniforms is None:
        valid = cast_rows(*arguments)
    else:
        uniforms = uniforms.reshape(rows.shape)
        valid = round_rows(*arguments, uniforms, uniforms.view(unsigned))
    return result if valid else None


def _serves(quantizer: Format, w: Any) -> bool:
    """Whether the loops cover this format and this array."""
    if type(w) is not np.ndarray or w.size < _SMALLEST or w.dtype.name not in _INTEGERS or not _plain(w):
        return False
    return quantizer.is_absmax and quantizer.partition.fits(w.shape)


def _plain(x: np.ndarray) -> bool:
    return x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative


def _alike(x: Any, w: np.ndarray) -> bool:
    return type(x) is np.ndarray and x.shape == w.shape and x.dtype == w.dtype and _plain(x)


# --- compilation -----------------------------------------------------------------------------------------------------

_demand = 0


def _in_demand(size: int) -> tuple[Any, Any] | None:
    """The compiled loops once enough weights came by, ``size`` more now; None before that and without numba."""
    global _demand
    _demand += max(size, _CALL_COST)
    return _loops() if _demand >= _COMPILE_AFTER else None


@lru_cache(maxsize=1)
def _loops() -> tuple[Any, Any] | None:
    """``(_cast_rows, _round_rows)`` compiled; None without numba."""
    try:
        import numba
        from numba.extending import register_jitable
    except ImportError:
        return None
    for callee in (kernels.goes_up, kernels.difference_error, kernels.compare_distances, largest_bits, _count):
        register_jitable(callee)
    # Not fastmath, which voids NaN checks and the sign of zero; not cache, which misses changes in kernels.
    compiled = numba.njit(nogil=True, error_model="numpy")
    return compiled(_cast_rows), compiled(_round_rows)


# --- the loops; all below is compiled, and runs as plain Python too --------------------------------------------------


def largest_bits(bits: np.ndarray, mask: Any) -> Any:
    """Largest ``bits & mask``. Read as integers, magnitudes keep their order, infinity and NaN coming last."""
    integer = bits.dtype.type  # without it numba computes in 64 bits
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
    """Round each row of ``w`` to nearest into ``out``; False if a weight is not finite."""
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    count = np.empty(_CHUNK, np.int32)
    last = plan.units.size - 1
    for b in range(w.shape[0]):
        peak_bits[0] = largest_bits(bits[b], plan.magnitude)
        top = peak[0]
        if not np.isfinite(top):
            return False
        accurate = plan.high > 0 and (top == 0 or (plan.lowest <= top and top <= plan.highest))
        inverse = plan.high / top if accurate and top > 0 else plan.zero
        for start in range(0, w.shape[1], _CHUNK):
            x, y = w[b, start : start + _CHUNK], out[b, start : start + _CHUNK]
            undecided = not accurate
            if accurate:
                for j in range(x.size):
                    place = x[j] * inverse
                    k = np.rint(place) + plan.zero  # makes -0 a +0
                    y[j] = top * (k * plan.step_high + k * plan.step_low)
                    undecided |= abs(place - k) > plan.decided
            if undecided:
                _count(x, top, plan.units, count)
                for j in range(x.size):
                    above = min(count[j], last)
                    lo, hi = top * plan.units[count[j] - 1], top * plan.units[above]
                    part = plan.quarter if max(abs(lo), abs(hi)) > plan.huge else plan.one
                    nearer, tie = kernels.compare_distances(x[j] * part, lo * part, hi * part)
                    y[j] = hi if nearer | (tie & plan.even[above]) else lo  # no short-circuit: SIMD
    return True


def _round_rows(
    plan: Plan, w: np.ndarray, bits: np.ndarray, out: np.ndarray, uniforms: np.ndarray, uniform_bits: np.ndarray
) -> bool:
    """Randomized rounding of each row; False if a weight is not finite or a uniform outside [0, 1) (or -0)."""
    peak_bits = np.empty(1, bits.dtype)
    peak = peak_bits.view(w.dtype)
    count = np.empty(_CHUNK, np.int32)
    last = plan.units.size - 1
    for b in range(w.shape[0]):
        peak_bits[0] = largest_bits(bits[b], plan.magnitude)
        top = peak[0]
        # Read as unsigned integers, the floats of [0, 1) are less than 1; NaN and all that have a sign are not.
        if not np.isfinite(top) or largest_bits(uniform_bits[b], plan.all_bits) >= plan.one_bits:
            return False
        if plan.high > 0 and (top == 0 or (plan.lowest <= top and top <= plan.highest)):
            x, u, y = w[b], uniforms[b], out[b]
            inverse = plan.high / top if top > 0 else plan.zero
            for j in range(x.size):
                k = np.rint(x[j] * inverse) + plan.zero  # makes -0 a +0
                near = top * (k * plan.step_high + k * plan.step_low)
                # copysign, not a selection, for which LLVM would compute both levels; again -0 becomes +0.
                k += np.copysign(plan.one, x[j] - near + plan.zero)
                far = top * (k * plan.step_high + k * plan.step_low)
                lo, hi = near if x[j] >= near else far, far if x[j] >= near else near
                y[j] = hi if kernels.goes_up(x[j], lo, hi, u[j]) else lo
        else:
            for start in range(0, w.shape[1], _CHUNK):
                stop = start + _CHUNK
                x, u, y = w[b, start:stop], uniforms[b, start:stop], out[b, start:stop]
                _count(x, top, plan.units, count)
                for j in range(x.size):
                    lo, hi = top * plan.units[count[j] - 1], top * plan.units[min(count[j], last)]
                    part = plan.quarter if max(abs(lo), abs(hi)) > plan.huge else plan.one
                    y[j] = hi if kernels.goes_up(x[j] * part, lo * part, hi * part, u[j]) else lo
    return True
