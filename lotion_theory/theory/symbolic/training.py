"""C12, C16, C18 to C20: cast against smoothed loss, averages over a cell, chattering, and the batch size."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import product
from typing import Any

import sympy as sp

from ... import kernels
from ._lift import K, around, expect, free, law, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Any]]


def nearest(w: Fraction, lo: Fraction, hi: Fraction) -> Fraction:
    """The nearer of two levels; exact ties go down."""
    return hi if kernels.compare_distances(w, lo, hi)[0] else lo


@proof(
    "C12",
    "RTN has no such guarantee: L(cast(w)) = ½ > L_smooth(w) = 3/10 for h = 1, w* = 1, w = 2/5, levels 0 and 1",
    "quadratic",
)
def nearest_can_be_worse() -> Obligations:
    w, lo, hi = sp.Rational(2, 5), sp.Integer(0), sp.Integer(1)

    def loss(q: Any) -> Any:
        return (sp.sympify(q) - 1) ** 2 / 2

    cast = nearest(Fraction(2, 5), Fraction(0), Fraction(1))
    smoothed = expect(loss, law(w, lo, hi))
    yield "loss of the cast", loss(sp.Rational(cast.numerator, cast.denominator)) - sp.Rational(1, 2)
    yield "smoothed loss", smoothed - sp.Rational(3, 10)
    yield "the upper end is better than the smoothed loss", bool(loss(1) <= smoothed)


@proof(
    "C16",
    "averaged over w in a cell, Var = gap²/6 and RTN's squared error is gap²/12: randomized rounding doubles it",
)
def mean_penalty() -> Obligations:
    w, lo, _ = free()
    gap = sp.Symbol("gap", positive=True)
    cell, middle = (w, lo, lo + gap), lo + gap / 2
    average = sp.integrate(sp.expand(K.variance(*cell)), (w, lo, lo + gap)) / gap
    halves = (lo, lo, middle), (lo + gap, middle, lo + gap)
    rtn = sum(sp.integrate(sp.expand((w - q) ** 2), (w, start, end)) for q, start, end in halves)
    yield "randomized rounding", average - gap**2 / 6
    yield "round to nearest", rtn / gap - gap**2 / 12
    delta = sp.Symbol("Delta", real=True)
    yield "unit step", sp.integrate(sp.expand(K.variance(delta, 0, 1)), (delta, 0, 1)) - sp.Rational(1, 6)


@proof(
    "C10",
    "in a cell the slope of L_smooth is h ((lo + hi)/2 - w*), constant: grid points are its only kinks (one weight)",
    "fixed-scale",
)
def smoothed_slope() -> Obligations:
    w, lo, hi = free()
    h, target = sp.symbols("h t", real=True)
    slope = h * (w - target) + h * K.variance_dw(w, lo, hi) / 2
    yield "slope", slope - h * ((lo + hi) / 2 - target)
    smoothed = expect(lambda q: h * (q - target) ** 2 / 2, law(w, lo, hi))
    yield "it is the derivative of the smoothed loss", sp.diff(smoothed, w) - slope


@proof(
    "C18b",
    "h = 2, w* = .83, s = .25: L_smooth falls on [.5, .75] and rises on [.75, 1], so the lattice point .75 is "
    "stationary",
    "fixed-scale",
)
def lattice_point_is_stationary() -> Obligations:
    w, target = sp.Symbol("w", real=True), sp.Rational(83, 100)
    levels = [sp.Rational(k, 4) for k in (2, 3, 4)]
    slopes = [sp.expand(2 * (w - target) + K.variance_dw(w, *levels[i : i + 2])) for i in (0, 1)]
    yield "slope left of .75", slopes[0] + sp.Rational(41, 100)
    yield "slope right of .75", slopes[1] - sp.Rational(9, 100)
    yield "Clarke subdifferential holds 0 inside", bool(slopes[0] < 0 < slopes[1])


@proof(
    "C18b",
    "STE-QAT there: with step 1/10 the iterates have period 25 (17 up, 8 down), straddle .875 and never reach a "
    "fixed point",
    "fixed-scale",
)
def straight_through_chatters() -> Obligations:
    target, step, quarter = Fraction(83, 100), Fraction(1, 10), Fraction(1, 4)
    start = w = Fraction(87, 100)
    seen, ups = set(), 0
    for _ in range(25):
        seen.add(w)
        lo = w // quarter * quarter
        gradient = 2 * (nearest(w, lo, lo + quarter) - target)
        ups += gradient < 0
        w -= step * gradient
    yield "back at the start", w == start
    yield "no shorter period", len(seen) == 25
    yield "17 steps up", ups == 17
    yield "the cast keeps flipping across .875", min(seen) < Fraction(7, 8) < max(seen)


@proof("C19", "E|RR - w| = 2 Var / gap, E|RR - cast| = |w - cast|, E(RR - cast)² = |w - cast| · gap")
def absolute_moments() -> Obligations:
    w, lo, hi = around()
    atoms = law(w, lo, hi)
    yield "mean absolute error", expect(lambda q: sp.Abs(q - w), atoms) - 2 * K.variance(w, lo, hi) / (hi - lo)
    for name, cast in (("lo", lo), ("hi", hi)):
        distance = sp.Abs(w - cast)
        yield f"E|RR - cast|, cast = {name}", expect(lambda q, c=cast: sp.Abs(sp.expand(q - c)), atoms) - distance
        yield f"E(RR - cast)², cast = {name}", expect(lambda q, c=cast: (q - c) ** 2, atoms) - distance * (hi - lo)


@proof(
    "C19",
    "a quadratic of curvature M attains |L_smooth - L| = ½ M Var; K|x - w| attains K E|RR - w|: neither bound can"
    " be lowered",
)
def bounds_are_attained() -> Obligations:
    w, lo, hi = around()
    m, k = sp.symbols("M K", positive=True)
    yield "smooth", expect(lambda q: m * (q - w) ** 2 / 2, law(w, lo, hi)) - m * K.variance(w, lo, hi) / 2
    lipschitz = expect(lambda q: k * sp.Abs(q - w), law(w, lo, hi))
    yield "Lipschitz", lipschitz - 2 * k * K.variance(w, lo, hi) / (hi - lo)
    gap = sp.Symbol("gap", positive=True)
    middle = (lo + gap / 2, lo, lo + gap)
    yield "at the midpoint Var = gap²/4", K.variance(*middle) - gap**2 / 4


@proof(
    "C20",
    "mean gradient of B independent samples: E ĝ² = E g²/B + (1 - 1/B)(E g)², for B = 1, 2, 3 and any law on 2 or"
    " 3 values",
)
def batch_second_moment() -> Obligations:
    for n in (2, 3):
        values, free_mass = sp.symbols(f"g1:{n + 1}", real=True), sp.symbols(f"p1:{n}", positive=True)
        mass = [*free_mass, 1 - sum(free_mass)]
        atoms = list(zip(mass, values, strict=True))
        fisher, mean = expect(lambda g: g**2, atoms), expect(lambda g: g, atoms)
        for batch in (1, 2, 3):
            second = sum(
                sp.Mul(*(p for p, _ in draw)) * (sum(g for _, g in draw) / sp.Integer(batch)) ** 2
                for draw in product(atoms, repeat=batch)
            )
            yield f"n = {n}, B = {batch}", second - fisher / batch - (1 - sp.Rational(1, batch)) * mean**2
