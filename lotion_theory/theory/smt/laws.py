"""C1 to C7 in real arithmetic: what one uniform decides, fixed points, couplings, blocks of any length."""

from collections.abc import Iterator
from typing import Any

import z3

from ._lift import Forall, Kernels, absolute, cell, minimum, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Forall]]


@proof("C1", "for every u, RR goes up exactly when u < p, and 0 <= p <= 1: a uniform u goes up with probability p")
def uniform_decides() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    u = z3.Real("u")
    p, up = k.prob_up(w, lo, hi), k.goes_up(w, lo, hi, u)
    yield "probability", Forall([*given, *k.facts], z3.And(p >= 0, p <= 1))
    yield "threshold", Forall([*given, *k.facts], up == (u < p))


@proof("C1", "RR(w) is lo or hi, whatever u")
def support() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    q = k.pick(w, lo, hi, z3.Real("u"))
    yield "support", Forall(given, z3.Or(q == lo, q == hi))


@proof("C2", "0 <= Var <= gap²/4, and Var = 0 exactly on a level")
def variance_range() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    v = k.variance(w, lo, hi)
    yield "range", Forall(given, z3.And(v >= 0, 4 * v <= (hi - lo) * (hi - lo)))
    yield "zeros", Forall(given, (v == 0) == z3.Or(w == lo, w == hi))


@proof("C2", "|E (RR - w)³| <= gap³ / (6 √3), squared to stay rational")
def third_moment_range() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    m, gap = k.third_moment(w, lo, hi), hi - lo
    yield "bound", Forall(given, 108 * m * m <= gap**6)


@proof("C3", "w = lo stays, w = hi stays, and w = lo = hi stays, for every u in [0, 1)")
def levels_are_fixed() -> Obligations:
    k = Kernels()
    _, lo, hi, _ = cell(k)
    u = z3.Real("u")
    given = [lo < hi, 0 <= u, u < 1]
    yield "w = lo", Forall(given, k.pick(lo, lo, hi, u) == lo)
    yield "w = hi", Forall(given, k.pick(hi, lo, hi, u) == hi)
    yield "w = lo = hi", Forall(given, k.pick(lo, lo, lo, u) == lo)


@proof(
    "C4",
    "block of any length: rounding leaves the largest magnitude, hence the lattice, unchanged, and a second "
    "rounding does nothing",
    "absmax",
)
def block_scale_is_fixed() -> Obligations:
    k = Kernels()
    w, lo, hi, u = (z3.Function(name, z3.IntSort(), z3.RealSort()) for name in ("w", "lo", "hi", "u"))
    level = z3.Function("is_level", z3.RealSort(), z3.BoolSort())
    anchor, largest, i, n = z3.Real("A"), z3.Int("largest"), z3.Int("i"), z3.Int("n")
    lo2, hi2, u2 = z3.Reals("lo2 hi2 u2")

    def bracket(x: Any, a: Any, b: Any) -> list[Any]:
        # Adjacent levels: x itself, where x is a level, is one of the two ends.
        return [
            a <= x,
            x <= b,
            level(a),
            level(b),
            z3.Implies(level(x), z3.Or(x == a, x == b)),
            -anchor <= a,
            b <= anchor,
        ]

    given = [anchor > 0, 0 <= largest, largest < n, 0 <= i, i < n, absolute(w(largest)) == anchor]
    given += [level(anchor), level(-anchor), absolute(w(i)) <= anchor]
    for j in (i, largest):
        given += [*bracket(w(j), lo(j), hi(j)), 0 <= u(j), u(j) < 1]
    q, top = (k.pick(w(j), lo(j), hi(j), u(j)) for j in (i, largest))
    yield "the largest weight stays", Forall(given, top == w(largest))
    yield "no weight exceeds it", Forall(given, absolute(q) <= absolute(top))
    yield "every point is a level", Forall(given, level(q))
    again = k.pick(q, lo2, hi2, u2)
    yield "second rounding", Forall([*given, *bracket(q, lo2, hi2), 0 <= u2, u2 < 1], again == q)


@proof(
    "C4",
    "T <= |w| <= amax <= T⁺ gives T <= m <= T⁺, with m = T⁺ only for the largest: nothing clips on the drawn grid",
    "sr-scale",
)
def sr_targets_stay_inside() -> Obligations:
    k = Kernels()
    threshold, above, amax, magnitude = z3.Reals("T T_above amax magnitude")
    p = k.prob_up(amax, threshold, above)
    m = k.mixture_target(magnitude, threshold, p)
    given = [0 < threshold, threshold < amax, amax <= above, threshold <= magnitude, magnitude <= amax, *k.facts]
    yield "inside", Forall(given, z3.And(threshold <= m, m <= above))
    yield "largest", Forall(given, (m == above) == (magnitude == amax))


def _expectation(k: Kernels, w: Any, lo: Any, hi: Any, f_lo: Any, f_hi: Any) -> Any:
    p = k.prob_up(w, lo, hi)
    return (1 - p) * f_lo + p * f_hi


@proof(
    "C5",
    "one u for both: w <= w' implies RR(w) <= RR(w'), in one cell or in two; so the coupling costs E RR(w') - E "
    "RR(w) = w' - w",
    "fixed-scale",
)
def monotone_coupling() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    w2, lo2, hi2, given2 = cell(k, "2")
    u = z3.Real("u")
    order = [w <= w2]
    yield "one cell", Forall([*given, lo <= w2, w2 <= hi, *order], k.pick(w, lo, hi, u) <= k.pick(w2, lo, hi, u))
    yield "two cells", Forall([*given, *given2, hi <= lo2], k.pick(w, lo, hi, u) <= k.pick(w2, lo2, hi2, u))


@proof(
    "C5",
    "L K-Lipschitz on the levels makes L_smooth K-Lipschitz, in one cell and across any distance",
    "fixed-scale",
)
def smoothing_keeps_lipschitz() -> Obligations:
    k = Kernels()
    w, lo, hi, given = cell(k)
    w2, lo2, hi2, given2 = cell(k, "2")
    bound, f_lo, f_hi, f_lo2, f_hi2 = z3.Reals("K f_lo f_hi f_lo2 f_hi2")
    same = _expectation(k, w2, lo, hi, f_lo, f_hi) - _expectation(k, w, lo, hi, f_lo, f_hi)
    given = [*given, bound >= 0, absolute(f_hi - f_lo) <= bound * (hi - lo)]
    one = [lo <= w2, w2 <= hi]
    yield "one cell", Forall([*given, *one, *k.facts], absolute(same) <= bound * absolute(w2 - w))
    k = Kernels()
    change = _expectation(k, w2, lo2, hi2, f_lo2, f_hi2) - _expectation(k, w, lo, hi, f_lo, f_hi)
    steps = [hi <= lo2, absolute(f_hi2 - f_lo2) <= bound * (hi2 - lo2), absolute(f_lo2 - f_hi) <= bound * (lo2 - hi)]
    yield "two cells", Forall([*given, *given2, *steps, *k.facts], absolute(change) <= bound * (w2 - w))


@proof(
    "C6",
    "lattices A c and A' c, w and w' in the same unit cell, |c| <= c_max: W1 <= |w - w'| + 2 c_max |A - A'|",
    "absmax",
)
def moving_lattice_lipschitz() -> Obligations:
    k = Kernels()
    anchor, anchor2, w, w2, c_lo, c_hi, c_max = z3.Reals("A A2 w w2 c_lo c_hi c_max")
    first, second = (anchor * c_lo, anchor * c_hi), (anchor2 * c_lo, anchor2 * c_hi)
    given = [anchor > 0, anchor2 > 0, c_lo < c_hi, -c_max <= c_lo, c_hi <= c_max]
    given += [first[0] <= w, w <= first[1], second[0] <= w2, w2 <= second[1]]
    p, p2 = k.prob_up(w, *first), k.prob_up(w2, *second)
    # One u for both: both go down, both go up, or only the one with the larger probability goes up.
    both_down, both_up = z3.If(p < p2, 1 - p2, 1 - p), minimum(p, p2)
    apart = z3.If(p < p2, (p2 - p) * absolute(first[0] - second[1]), (p - p2) * absolute(first[1] - second[0]))
    cost = both_down * absolute(first[0] - second[0]) + both_up * absolute(first[1] - second[1]) + apart
    bound = absolute(w - w2) + 2 * c_max * absolute(anchor - anchor2)
    yield "coupling", Forall([*given, *k.facts], cost <= bound)


@proof(
    "C7",
    "where every support point q_j is fixed, L_smooth(w) = Σ p_j L(q_j) >= min_j L_smooth(q_j) (2 to 4 points)",
    "any",
)
def mean_is_above_minimum() -> Obligations:
    for n in (2, 3, 4):
        p, f, s = ([z3.Real(f"{name}{j}") for j in range(n)] for name in ("p", "L", "S"))
        given = [z3.And(*(x >= 0 for x in p)), z3.Sum(p) == 1, *(s[j] == f[j] for j in range(n))]
        mean = z3.Sum([x * y for x, y in zip(p, f, strict=True)])
        yield f"{n} points", Forall(given, mean >= minimum(*s))


@proof(
    "C7",
    "L >= m on the 2^d vertices of the cell of w gives L_smooth(w) >= m (d = 1, 2; more weights by C12)",
    "any",
)
def smoothed_is_above_vertices() -> Obligations:
    least = z3.Real("m")
    for d in (1, 2):
        k = Kernels()
        cells = [cell(k, str(i)) for i in range(d)]
        given = [fact for c in cells for fact in c[3]]
        values = [z3.Real(f"L{v}") for v in range(2**d)]
        given += [value >= least for value in values]
        for w, lo, hi, _ in cells:
            p = k.prob_up(w, lo, hi)
            half = len(values) // 2
            values = [(1 - p) * a + p * b for a, b in zip(values[:half], values[half:], strict=True)]
        yield f"d = {d}", Forall([*given, *k.facts], values[0] >= least)
