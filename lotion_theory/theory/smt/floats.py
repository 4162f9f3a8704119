"""Facts of floating point: which promises of the kernels survive rounding, and which need care.

Half precision where the solver manages it. Statements that add or divide several values are proved on floats of 6 to 8
bits, with subnormals, infinities and rounding to nearest even: the same arguments, on fewer digits.
"""

from collections.abc import Iterator
from typing import Any

import z3

from ._lift import Exists, Forall, Kernels, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Forall | Exists]]

HALF = z3.FPSort(5, 11)
BITS6, BITS7, BITS8 = z3.FPSort(3, 3), z3.FPSort(3, 4), z3.FPSort(4, 4)  # exponent bits, significant bits


def _finite(*values: Any) -> list[Any]:
    return [z3.Not(z3.Or(z3.fpIsNaN(v), z3.fpIsInf(v))) for v in values]


def _bracket(sort: Any = HALF) -> tuple[Any, Any, Any, list[Any]]:
    """``(w, lo, hi, given)``: finite, ``lo <= w <= hi``, ``lo < hi``, and a gap that does not overflow."""
    w, lo, hi = z3.FPs("w lo hi", sort)
    return w, lo, hi, [*_finite(w, lo, hi, hi - lo), lo < hi, lo <= w, w <= hi]


def _uniform() -> tuple[Any, list[Any]]:
    u = z3.FP("u", HALF)
    return u, [u >= 0.0, u < 1.0]


@proof("C3", "select returns lo or hi exactly", "half")
def select_is_exact() -> Obligations:
    k = Kernels()
    lo, hi = z3.FPs("lo hi", HALF)
    yield "up", Forall(_finite(lo, hi), z3.fpEQ(k.select(lo, hi, 1), hi))
    yield "down", Forall(_finite(lo, hi), z3.fpEQ(k.select(lo, hi, 0), lo))


@proof("C3", "lo + (hi - lo) is not always hi: the shorter formula leaves the lattice (witness)", "half")
def shorter_select_is_not_exact() -> Obligations:
    _, lo, hi, given = _bracket()
    yield "witness", Exists([*given, z3.Not(z3.fpEQ(lo + (hi - lo), hi))])


@proof("C3", "w = lo never moves, and w = hi never moves where the gap exceeds the smallest normal number", "half")
def levels_are_fixed_in_half() -> Obligations:
    k = Kernels()
    _, lo, hi, given = _bracket()
    u, unit = _uniform()
    yield "w = lo", Forall([*given, *unit], z3.Not(k.goes_up(lo, lo, hi, u)))
    yield "w = lo = hi", Forall([*_finite(lo), *unit], z3.fpEQ(k.pick(lo, lo, lo, u), lo))
    yield "w = hi", Forall([*given, *unit, hi - lo > z3.FPVal(2.0**-14, HALF)], k.goes_up(hi, lo, hi, u))


@proof("C3", "at smaller gaps w = hi can go down (witness): a level must be bracketed by itself, lo = hi = w", "half")
def subnormal_gap_moves_a_level() -> Obligations:
    k = Kernels()
    _, lo, hi, given = _bracket()
    u, unit = _uniform()
    yield "witness", Exists([*given, *unit, z3.Not(k.goes_up(hi, lo, hi, u))])


@proof("C1", "0 <= prob_up <= 1, 0 at lo and 1 at hi, also after rounding", "minifloat")
def probability_of_floats() -> Obligations:
    k = Kernels()
    w, lo, hi, given = _bracket(BITS8)
    p = k.prob_up(w, lo, hi)
    yield "range", Forall(given, z3.And(p >= 0.0, p <= 1.0))
    yield "at lo", Forall(given, z3.fpEQ(k.prob_up(lo, lo, hi), z3.FPVal(0, BITS8)))
    yield "at hi", Forall(given, z3.fpEQ(k.prob_up(hi, lo, hi), z3.FPVal(1, BITS8)))


@proof("C4", "round(M / (M / 7)) = 7 for every normal M: the code of the largest weight is stable", "half")
def largest_code_is_stable() -> Obligations:
    m, seven = z3.FP("M", HALF), z3.FPVal(7, HALF)
    code = z3.fpRoundToIntegral(z3.RNE(), m / (m / seven))
    yield "code", Forall([z3.fpIsNormal(m)], z3.fpEQ(code, seven))


@proof(
    "C4",
    "7 · (M / 7) is not always M (witness): a stored scale moves the largest weight, a stored maximum does not",
    "half",
)
def stored_scale_moves_the_maximum() -> Obligations:
    m, seven = z3.FP("M", HALF), z3.FPVal(7, HALF)
    yield "witness", Exists([z3.fpIsNormal(m), z3.fpIsNormal(m / seven), z3.Not(z3.fpEQ(seven * (m / seven), m))])
    yield "stored maximum", Forall(_finite(m), z3.fpEQ(m * (seven / seven), m))


def _exactly(*values: Any) -> list[Any]:
    """The values in a format wide enough for their sums and differences to be exact (6 or 7 bit floats)."""
    return [z3.fpToFP(z3.RNE(), value, z3.FPSort(5, 10)) for value in values]


@proof("C19", "difference_error is the exact rounding error where |a|, |b|, |a - b| are below the largest", "minifloat")
def difference_error_is_exact() -> Obligations:
    k = Kernels()
    a, b = z3.FPs("a b", BITS7)
    error, largest = k.difference_error(a, b), z3.FPVal(15.0, BITS7)
    wide_a, wide_b, difference, wide_error = _exactly(a, b, a - b, error)
    below = [z3.fpAbs(x) < largest for x in (a, b, a - b)]
    yield "exact", Forall(below, z3.fpEQ(wide_a - wide_b, difference + wide_error))


@proof(
    "C19", "next to the largest number, a step of difference_error can overflow while a - b does not (witness)", "half"
)
def difference_error_can_overflow() -> Obligations:
    k = Kernels()
    a, b = z3.FPs("a b", HALF)
    yield "witness", Exists([*_finite(a, b, a - b), z3.Not(z3.And(_finite(k.difference_error(a, b))))])


@proof("C19", "compare_distances finds the nearer level, and exact ties, as exact arithmetic does", "minifloat")
def nearest_is_exact() -> Obligations:
    k = Kernels()
    w, lo, hi, given = _bracket(BITS6)
    hi_nearer, tie = k.compare_distances(w, lo, hi)
    wide_w, wide_lo, wide_hi = _exactly(w, lo, hi)
    below, above = wide_w - wide_lo, wide_hi - wide_w
    yield "nearer", Forall(given, hi_nearer == (above < below))
    yield "tie", Forall(given, tie == z3.fpEQ(above, below))
