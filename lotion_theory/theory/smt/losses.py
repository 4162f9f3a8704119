"""C9, C11, C12, C18 and C19 in real arithmetic: bounds between the plain, the smoothed and the cast loss."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import z3

from ._lift import Forall, Kernels, absolute, cell, minimum, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Forall]]


def _smoothed(k: Kernels, bracket: tuple[Any, ...]) -> tuple[Any, Any, Any]:
    """``(E L(RR), L(lo), L(hi))`` with free loss values."""
    f_lo, f_hi = z3.Reals("L_lo L_hi")
    (down, _), (up, _) = k.law(*bracket[:3])
    return down * f_lo + up * f_hi, f_lo, f_hi


@proof("C9", "|L'''| <= M gives |L_smooth - L - ½ L'' Var| <= (M/6) E|RR - w|³ <= M gap³/48")
def gauss_newton_remainder() -> Obligations:
    k = Kernels()
    w, lo, hi, given = bracket = cell(k)
    smoothed, f_lo, f_hi = _smoothed(k, bracket)
    f, g, h, m = z3.Reals("L dL ddL M")
    taylor = []
    for value, step in ((f_lo, lo - w), (f_hi, hi - w)):
        cube = absolute(step) * step * step
        taylor.append(6 * absolute(value - f - g * step - h * step * step / 2) <= m * cube)
    up, down = hi - w, w - lo
    (p_down, _), (p_up, _) = k.law(w, lo, hi)
    third = p_up * up * up * up + p_down * down * down * down
    given = [*given, m >= 0, *k.facts]
    remainder = absolute(smoothed - f - h * k.variance(w, lo, hi) / 2)
    yield "third absolute moment", Forall(given, 8 * third <= (hi - lo) ** 3)
    yield "remainder", Forall([*given, *taylor], 6 * remainder <= m * third)


@proof(
    "C11",
    "a vertex below its two neighbours is a strict minimum of L_smooth in the cell near it; else an edge does not"
    " rise (d = 2)",
    "fixed-scale",
)
def vertex_minima() -> Obligations:
    k = Kernels()
    x, y, f00, f01, f10, f11 = z3.Reals("x y f00 f01 f10 f11")
    # The unit cell: x and y are the probabilities of going up.
    (px0, _), (px1, _) = k.law(x, z3.RealVal(0), z3.RealVal(1))
    (py0, _), (py1, _) = k.law(y, z3.RealVal(0), z3.RealVal(1))
    smoothed = px0 * (py0 * f00 + py1 * f01) + px1 * (py0 * f10 + py1 * f11)
    twist = absolute(f11 - f10 - f01 + f00)
    inside = [0 <= x, x <= 1, 0 <= y, y <= 1, *k.facts]
    near = [z3.Or(x > 0, y > 0), twist * x < f01 - f00, f00 < f10, f00 < f01]
    yield "strict minimum", Forall([*inside, *near], smoothed > f00)
    yield "no rise along the edge", Forall([*inside, y == 0, f10 <= f00], smoothed <= f00)


@proof(
    "C12",
    "E = (1-p) E0 + p E1 >= min(E0, E1): rounding one weight to the better end never raises the conditional mean",
)
def better_end() -> Obligations:
    k = Kernels()
    bracket = cell(k)
    smoothed, f_lo, f_hi = _smoothed(k, bracket)
    yield "one weight", Forall([*bracket[3], *k.facts], smoothed >= minimum(f_lo, f_hi))


@proof(
    "C12",
    "rounding two weights one after the other, each to the lower conditional mean, ends at L(q) <= L_smooth(w)",
)
def greedy_rounding() -> Obligations:
    k = Kernels()
    cells = [cell(k, str(i)) for i in (1, 2)]
    f = {v: z3.Real(f"L{v[0]}{v[1]}") for v in product((0, 1), repeat=2)}
    p, r = (k.prob_up(*c[:3]) for c in cells)
    ends = [(1 - r) * f[i, 0] + r * f[i, 1] for i in (0, 1)]
    first_up = ends[1] < ends[0]
    final = z3.If(first_up, minimum(f[1, 0], f[1, 1]), minimum(f[0, 0], f[0, 1]))
    given = [fact for c in cells for fact in c[3]]
    yield "two weights", Forall([*given, *k.facts], final <= (1 - p) * ends[0] + p * ends[1])


def _example(k: Kernels) -> tuple[Any, Any, Any, Any, list[Any]]:
    """h = 2, w* = .83, s = .25 at any weight: ``(w, lo, hi, w*, given)``."""
    w, n = z3.Real("w"), z3.Int("n")
    lo, hi = z3.ToReal(n) / 4, (z3.ToReal(n) + 1) / 4
    return w, lo, hi, z3.Q(83, 100), [lo <= w, w < hi]


@proof(
    "C18b",
    "everywhere the STE-QAT gradient points to the threshold .875 and is at least .16 long: it cannot settle",
    "fixed-scale",
)
def straight_through_points_to_threshold() -> Obligations:
    k = Kernels()
    w, lo, hi, target, given = _example(k)
    hi_nearer, _ = k.compare_distances(w, lo, hi)
    gradient = 2 * (z3.If(hi_nearer, hi, lo) - target)
    threshold = z3.Q(7, 8)
    yield "sign", Forall([*given, w != threshold], (gradient > 0) == (w > threshold))
    yield "length", Forall(given, absolute(gradient) >= z3.Q(16, 100))


@proof(
    "C18b",
    "everywhere off the grid the gradient of L_smooth points to the lattice point .75 and is at least .09 long",
    "fixed-scale",
)
def smoothed_points_to_lattice() -> Obligations:
    k = Kernels()
    w, lo, hi, target, given = _example(k)
    gradient = 2 * (w - target) + k.variance_dw(w, lo, hi)
    best = z3.Q(3, 4)
    yield "sign", Forall([*given, lo < w], (gradient > 0) == (w > best))
    yield "length", Forall([*given, lo < w], absolute(gradient) >= z3.Q(9, 100))


def _bounds_setting() -> tuple[Kernels, Any, Any, Any, list[Any], Any, Any, Any]:
    k = Kernels()
    w, lo, hi, given = bracket = cell(k)
    smoothed, f_lo, f_hi = _smoothed(k, bracket)
    return k, w, lo, hi, [*given, *k.facts], smoothed, f_lo, f_hi


@proof("C19", "L K-Lipschitz: |L_smooth - L| <= 2 K Var / gap <= K gap / 2")
def lipschitz_bound() -> Obligations:
    k, w, lo, hi, given, smoothed, f_lo, f_hi = _bounds_setting()
    f, bound = z3.Reals("L K")
    lipschitz = [absolute(f_lo - f) <= bound * (w - lo), absolute(f_hi - f) <= bound * (hi - w), bound >= 0]
    v, gap = k.variance(w, lo, hi), hi - lo
    yield "by the variance", Forall([*given, *lipschitz], gap * absolute(smoothed - f) <= 2 * bound * v)
    yield "by the gap", Forall([lo < hi, lo <= w, w <= hi, bound >= 0], 4 * bound * v <= bound * gap * gap)


@proof("C19", "L' M-Lipschitz: |L_smooth - L| <= ½ M Var <= M gap² / 8")
def smooth_bound() -> Obligations:
    k, w, lo, hi, given, smoothed, f_lo, f_hi = _bounds_setting()
    f, g, m = z3.Reals("L dL M")
    smooth = [2 * absolute(value - f - g * step) <= m * step * step for value, step in ((f_lo, lo - w), (f_hi, hi - w))]
    v = k.variance(w, lo, hi)
    yield "by the variance", Forall([*given, *smooth, m >= 0], 2 * absolute(smoothed - f) <= m * v)
    yield "by the gap", Forall([lo < hi, lo <= w, w <= hi, m >= 0], 4 * m * v <= m * (hi - lo) * (hi - lo))


def _cast(k: Kernels, w: Any, lo: Any, hi: Any, if_lo: Any, if_hi: Any) -> Any:
    return z3.If(k.compare_distances(w, lo, hi)[0], if_hi, if_lo)


@proof("C19", "L K-Lipschitz on the levels: |L_smooth - L(cast)| <= K |w - cast(w)| <= K gap / 2")
def cast_lipschitz_bound() -> Obligations:
    k, w, lo, hi, given, smoothed, f_lo, f_hi = _bounds_setting()
    bound = z3.Real("K")
    given = [*given, bound >= 0, absolute(f_hi - f_lo) <= bound * (hi - lo)]
    distance = _cast(k, w, lo, hi, w - lo, hi - w)
    gap_to_cast = absolute(smoothed - _cast(k, w, lo, hi, f_lo, f_hi))
    yield "by the distance", Forall(given, gap_to_cast <= bound * distance)
    yield "by the gap", Forall([lo < hi, lo <= w, w <= hi], 2 * distance <= hi - lo)


@proof("C19", "L' M-Lipschitz: |L_smooth - L(cast)| <= |L'(w)| δ + ½ M δ gap, δ = |w - cast(w)| <= gap / 2")
def cast_smooth_bound() -> Obligations:
    k, w, lo, hi, given, smoothed, f_lo, f_hi = _bounds_setting()
    f, g, m = z3.Reals("L dL M")
    smooth = [2 * absolute(value - f - g * step) <= m * step * step for value, step in ((f_lo, lo - w), (f_hi, hi - w))]
    distance = _cast(k, w, lo, hi, w - lo, hi - w)
    difference = absolute(smoothed - _cast(k, w, lo, hi, f_lo, f_hi))
    yield (
        "bound",
        Forall([*given, *smooth, m >= 0], 2 * difference <= 2 * absolute(g) * distance + m * distance * (hi - lo)),
    )


@proof("C19", "L convex: L_smooth >= L")
def convex_smoothing_is_above() -> Obligations:
    _, w, lo, hi, given, smoothed, f_lo, f_hi = _bounds_setting()
    f, g = z3.Reals("L dL")
    yield "Jensen", Forall([*given, f_lo >= f + g * (lo - w), f_hi >= f + g * (hi - w)], smoothed >= f)
