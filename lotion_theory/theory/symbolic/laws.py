"""C1 to C7: moments, fixed points, distances and continuity of the law of randomized rounding."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import sympy as sp

from ._lift import K, Law, around, ends, expect, free, is_zero, joint, law, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Any]]


@proof("C1", "E RR(w) = w")
def mean() -> Obligations:
    w, lo, hi = around()
    atoms = law(w, lo, hi)
    yield "probabilities sum to 1", expect(lambda q: 1, atoms) - 1
    yield "mean", expect(lambda q: q, atoms) - w


@proof(
    "C1",
    "(1-p) T + p E RR(m) = |w| for m = mixture_target(|w|, T, p): clipping on the fine grid is repaid",
    "sr-scale",
)
def mean_sr_scale() -> Obligations:
    magnitude, threshold, p = sp.symbols("magnitude T p", positive=True)
    a, b = sp.symbols("a b", positive=True)
    m = K.mixture_target(magnitude, threshold, p)
    yield "conditional means mix to |w|", (1 - p) * threshold + p * m - magnitude
    yield "rounding the target", (1 - p) * threshold + p * expect(lambda q: q, law(m, m - a, m + b)) - magnitude


@proof("C1", "E RR(w) = w below the threshold, whichever of the two grids is drawn", "sr-scale")
def mean_sr_scale_below() -> Obligations:
    w = sp.Symbol("w", real=True)
    a, b, c, d, p = sp.symbols("a b c d p", positive=True)
    fine, coarse = law(w, w - a, w + b), law(w, w - c, w + d)
    yield "mean", (1 - p) * expect(lambda q: q, fine) + p * expect(lambda q: q, coarse) - w


@proof("C2", "Var RR(w) = (hi - w)(w - lo)")
def variance() -> Obligations:
    w, lo, hi = around()
    yield "second central moment", expect(lambda q: (q - w) ** 2, law(w, lo, hi)) - K.variance(w, lo, hi)


@proof("C2", "Var RR(w) = s² Δ (1 - Δ) for w = s (k + Δ)", "uniform")
def variance_uniform() -> Obligations:
    s, k, delta = sp.symbols("s k Delta", positive=True)
    w, lo, hi = s * (k + delta), s * k, s * (k + 1)
    yield "variance", K.variance(w, lo, hi) - s**2 * delta * (1 - delta)
    yield "Delta is the probability", K.prob_up(w, lo, hi) - delta


@proof("C2", "E (RR(w) - w)³ = Var · ((hi - w) - (w - lo)); s³ Δ (1-Δ)(1-2Δ) on a uniform grid")
def third_moment() -> Obligations:
    w, lo, hi = around()
    yield "third central moment", expect(lambda q: (q - w) ** 3, law(w, lo, hi)) - K.third_moment(w, lo, hi)
    s, k, delta = sp.symbols("s k Delta", positive=True)
    uniform = K.third_moment(s * (k + delta), s * k, s * (k + 1))
    yield "uniform grid", uniform - s**3 * delta * (1 - delta) * (1 - 2 * delta)


@proof("C2", "E (q - |w|)² = p Var RR(m) + ((1-p)/p)(|w| - T)²: the drawn scale adds the second term", "sr-scale")
def variance_sr_scale() -> Obligations:
    magnitude, threshold, p = sp.symbols("magnitude T p", positive=True)
    a, b = sp.symbols("a b", positive=True)
    m = K.mixture_target(magnitude, threshold, p)
    coarse = expect(lambda q: (q - magnitude) ** 2, law(m, m - a, m + b))
    total = (1 - p) * (threshold - magnitude) ** 2 + p * coarse
    yield "variance", total - p * K.variance(m, m - a, m + b) - (1 - p) / p * (magnitude - threshold) ** 2


@proof("C3", "P(RR(w) = w) = 1 and all moments vanish at w = lo, at w = hi, and for lo = hi = w")
def fixed_points() -> Obligations:
    _, lo, hi = free()
    yield "probability 0 at lo", K.prob_up(lo, lo, hi)
    yield "probability 1 at hi", K.prob_up(hi, lo, hi) - 1
    yield "probability 0 on a level", K.prob_up(lo, lo, lo)
    for name, level in (("lo", lo), ("hi", hi)):
        yield f"variance at {name}", K.variance(level, lo, hi)
        yield f"third moment at {name}", K.third_moment(level, lo, hi)
        for up in (0, 1):
            yield f"both support points are {name} on a level", K.select(level, level, up) - level


@proof(
    "C4",
    "with levels A c, rounding A c on the lattice of A gives A c back; A is unchanged because A itself is a level",
    "absmax",
)
def support_fixed_absmax() -> Obligations:
    anchor = sp.Symbol("A", positive=True)
    c_lo, gap, t = sp.symbols("c_lo gap t", positive=True)
    lo, hi = anchor * c_lo, anchor * (c_lo + gap)
    for up, level in ((0, lo), (1, hi)):
        q = K.select(lo, hi, up)
        yield "the support point is a level", q - level
        yield "it is rounded to itself", expect(lambda x, q=q: (x - q) ** 2, law(q, lo, hi))
    largest = K.select(anchor * (1 - t), anchor, 1)
    yield "the largest magnitude goes to A surely", K.prob_up(anchor, anchor * (1 - t), anchor) - 1
    yield "and stays A", largest - anchor


@proof(
    "C4",
    "the largest weight lands on T⁺: mixture_target(amax, T, (amax-T)/(T⁺-T)) = T⁺, so the drawn grid reproduces "
    "itself",
    "sr-scale",
)
def support_fixed_sr_scale() -> Obligations:
    threshold, gap, t = sp.symbols("T gap t", positive=True)
    amax, above = threshold + t * gap, threshold + gap
    p = K.prob_up(amax, threshold, above)
    yield "target of the largest weight", K.mixture_target(amax, threshold, p) - above


def _cdf_at(atoms: Law, points: list[Any], index: int) -> Any:
    """Mass at or below ``points[index]``; ``points`` is sorted and holds every atom."""
    total = sp.Integer(0)
    for p, q in atoms:
        if any(is_zero(q - point) for point in points[: index + 1]):
            total += p
    return sp.factor(total)


def _wasserstein(first: Law, second: Law, points: list[Any]) -> Any:
    """``W1 = ∫ |F - G|`` of two laws on sorted ``points``; assumptions on symbols give the sign of ``F - G``."""
    steps = range(len(points) - 1)
    return sp.Add(
        *(
            sp.Abs(sp.factor(_cdf_at(first, points, i) - _cdf_at(second, points, i))) * (points[i + 1] - points[i])
            for i in steps
        )
    )


@proof(
    "C5",
    "W1(RR(w), RR(w')) = |w - w'| in one cell, in adjacent cells, and in cells any distance apart",
    "fixed-scale",
)
def wasserstein() -> Obligations:
    a = sp.Symbol("a", real=True)
    s, gap, r = sp.symbols("s gap r", positive=True)
    t, d = sp.symbols("t d", nonnegative=True)
    lo, hi = a, a + s
    yield "one cell", _wasserstein(law(lo + s * t, lo, hi), law(lo + s * (t + d), lo, hi), [lo, hi]) - s * d
    # w = hi - s t and w' = hi2 + r d sit on either side, so that no other constraint is needed for the signs.
    for label, between in (("adjacent cells", sp.Integer(0)), ("distant cells", gap)):
        lo2 = hi + between
        points = [lo, hi, lo2 + r] if between == 0 else [lo, hi, lo2, lo2 + r]
        distance = _wasserstein(law(hi - s * t, lo, hi), law(lo2 + r * d, lo2, lo2 + r), points)
        yield label, distance - (between + s * t + r * d)


@proof(
    "C6",
    "at a lattice point the laws from the two adjacent cells have the same limit, the point mass",
    "fixed-scale",
)
def continuous_at_levels() -> Obligations:
    w, a = sp.symbols("w a", real=True)
    s, r = sp.symbols("s r", positive=True)
    b = a + s
    left, right = law(w, a, b), law(w, b, b + r)
    yield "mass at b from the left", sp.limit(left[1][0], w, b, "-") - 1
    yield "the left cell ends in b", left[1][1] - b
    yield "mass at b from the right", sp.limit(right[0][0], w, b, "+") - 1
    yield "the right cell starts in b", right[0][1] - b


@proof(
    "C6",
    "RR on the lattice A c is A times RR of w/A on the lattice c, so the law is continuous in (w, A) for A > 0",
    "absmax",
)
def scale_covariance() -> Obligations:
    w, c_lo, c_hi = free()
    anchor = sp.Symbol("A", positive=True)
    yield "probability", K.prob_up(w, anchor * c_lo, anchor * c_hi) - K.prob_up(w / anchor, c_lo, c_hi)
    yield "variance", K.variance(w, anchor * c_lo, anchor * c_hi) - anchor**2 * K.variance(w / anchor, c_lo, c_hi)
    for up in (0, 1):
        yield "support", K.select(anchor * c_lo, anchor * c_hi, up) - anchor * K.select(c_lo, c_hi, up)


@proof(
    "C6",
    "m -> |w| as p -> 1, and m = T at |w| = T whatever p: no jump where a scale joins or leaves the mixture",
    "sr-scale",
)
def continuous_sr_scale() -> Obligations:
    magnitude, threshold, p = sp.symbols("magnitude T p", positive=True)
    yield "p -> 1", sp.limit(K.mixture_target(magnitude, threshold, p), p, 1) - magnitude
    yield "|w| = T", K.mixture_target(threshold, threshold, p) - threshold


@proof("C7", "at each of the 2^d vertices of a cell L_smooth = L (d = 2, any loss values)", "fixed-scale")
def smoothed_equals_loss_on_vertices() -> Obligations:
    cells = [free(str(i)) for i in (1, 2)]
    vertices = list(product((0, 1), repeat=2))
    values = {v: sp.Symbol(f"f{v[0]}{v[1]}") for v in vertices}
    for corner in vertices:
        atoms = joint([ends((lo, hi)[up], lo, hi) for (_, lo, hi), up in zip(cells, corner, strict=True)])
        yield f"vertex {corner}", expect(lambda v: values[v], atoms) - values[corner]
