"""Facts of IEEE half precision: which promises survive rounding in the kernels, and which need care."""

from collections.abc import Iterator
from typing import Any

import z3

from ._lift import Exists, Forall, Kernels, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Forall | Exists]]

HALF = z3.FPSort(5, 11)


def _finite(*values: Any) -> list[Any]:
    return [z3.Not(z3.Or(z3.fpIsNaN(v), z3.fpIsInf(v))) for v in values]


def _bracket(k: Kernels) -> tuple[Any, Any, Any, list[Any]]:
    """``(w, lo, hi, given)``: finite, ``lo <= w <= hi``, ``lo < hi``, and a gap that does not overflow."""
    w, lo, hi = z3.FPs("w lo hi", HALF)
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
    _, lo, hi, given = _bracket(Kernels())
    yield "witness", Exists([*given, z3.Not(z3.fpEQ(lo + (hi - lo), hi))])


@proof("C3", "w = lo never moves, and w = hi never moves where gap is a normal number", "half")
def levels_are_fixed_in_half() -> Obligations:
    k = Kernels()
    _, lo, hi, given = _bracket(k)
    u, unit = _uniform()
    yield "w = lo", Forall([*given, *unit], z3.Not(k.goes_up(lo, lo, hi, u)))
    yield "w = lo = hi", Forall([*_finite(lo), *unit], z3.fpEQ(k.pick(lo, lo, lo, u), lo))
    yield "w = hi", Forall([*given, *unit, z3.fpIsNormal(hi - lo)], k.goes_up(hi, lo, hi, u))


@proof("C3", "where the gap is subnormal, w = hi can go down (witness): a level must be bracketed by itself", "half")
def subnormal_gap_moves_a_level() -> Obligations:
    k = Kernels()
    _, lo, hi, given = _bracket(k)
    u, unit = _uniform()
    yield "witness", Exists([*given, *unit, z3.Not(k.goes_up(hi, lo, hi, u))])


@proof("C1", "0 <= prob_up <= 1, 0 at lo and 1 at hi, also after rounding", "half")
def probability_in_half() -> Obligations:
    k = Kernels()
    w, lo, hi, given = _bracket(k)
    p = k.prob_up(w, lo, hi)
    yield "range", Forall(given, z3.And(p >= 0.0, p <= 1.0))
    yield "at lo", Forall(given, z3.fpEQ(k.prob_up(lo, lo, hi), z3.FPVal(0, HALF)))
    yield "at hi", Forall(given, z3.fpEQ(k.prob_up(hi, lo, hi), z3.FPVal(1, HALF)))


@proof("C4", "round(M / (M / 7)) = 7 for every normal M: the code of the largest weight is stable", "half")
def largest_code_is_stable() -> Obligations:
    m, seven = z3.FP("M", HALF), z3.FPVal(7, HALF)
    code = z3.fpRoundToIntegral(z3.RNE(), m / (m / seven))
    yield "code", Forall([z3.fpIsNormal(m)], z3.fpEQ(code, seven))


@proof("C4", "7 · (M / 7) is not always M (witness): a stored scale moves the largest weight, a stored maximum does not", "half")
def stored_scale_moves_the_maximum() -> Obligations:
    m, seven = z3.FP("M", HALF), z3.FPVal(7, HALF)
    yield "witness", Exists([z3.fpIsNormal(m), z3.fpIsNormal(m / seven), z3.Not(z3.fpEQ(seven * (m / seven), m))])
    yield "stored maximum", Forall(_finite(m), z3.fpEQ(m * (seven / seven), m))


@proof("C19", "difference_error is the exact rounding error of a - b wherever nothing overflows", "half")
def difference_error_is_exact() -> Obligations:
    k = Kernels()
    a, b = z3.FPs("a b", HALF)
    e = k.difference_error(a, b)
    # 45 bits hold any half exactly to a multiple of 2^-24 below 2^17, so sums in the wide format are exact.
    wide = z3.FPSort(8, 45)
    exact = [z3.fpToFP(z3.RNE(), x, wide) for x in (a, b, a - b, e)]
    yield "exact", Forall(_finite(a, b, a - b, e), z3.fpEQ(exact[0] - exact[1], exact[2] + exact[3]))
