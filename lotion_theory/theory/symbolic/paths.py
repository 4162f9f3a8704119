"""C21 and C22: curvature along mixtures of ``w`` and ``RR(w)``, and gradients sampled at ``RR(w)``."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import sympy as sp

from ._lift import K, around, expect, free, is_zero, joint, law, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Any]]


def quadratic_in_each(d: int) -> tuple[Any, Any]:
    """``(x, L)``: symbols ``x`` (d,) and a polynomial of degree 2 in each, every coefficient a symbol of its own."""
    x = sp.symbols(f"x1:{d + 1}", real=True)
    terms = product(range(3), repeat=d)
    return x, sp.Add(*(sp.Symbol("c" + "".join(map(str, e))) * sp.Mul(*map(sp.Pow, x, e)) for e in terms))


def mean_at(expr: Any, x: Any, w: Any, s: Any, t: Any) -> Any:
    """``E expr(m_t)`` for an ``expr`` of degree 2 in each ``x``: each is ``w`` or, with probability ``t``, has mean
    ``w`` and variance ``s`` (1 for ``t``: the mean over all roundings)."""
    moments = [(1, wi, wi**2 + t * si) for wi, si in zip(w, s, strict=True)]
    terms = sp.Poly(expr, *x).terms()
    return sp.Add(*(c * sp.Mul(*(m[n] for m, n in zip(moments, powers, strict=True))) for powers, c in terms))


@proof(
    "C21",
    "any L of degree 2 in each of d = 2 and 3 weights: E L(RR(w)) = L(w) + ½ Σ σ_i² ∫₀¹ E[h_i(m_t)] dt",
)
def path_curvature() -> Obligations:
    cell, t = around(), sp.Symbol("t", real=True)
    for name, power, value in (("mass", 0, 1), ("mean", 1, 0), ("variance", 2, K.variance(*cell))):
        yield f"{name} of the noise", expect(lambda q, n=power: (q - cell[0]) ** n, law(*cell)) - value
    for d in (2, 3):
        x, loss = quadratic_in_each(d)
        w, s = sp.symbols(f"w1:{d + 1}", real=True), sp.symbols(f"S1:{d + 1}", real=True)
        added = sp.Integer(0)
        for xi, si in zip(x, s, strict=True):
            along = mean_at(sp.diff(loss, xi, 2), x, w, s, t)
            added += si * sp.integrate(sp.expand(along), (t, 0, 1)) / 2
        here = loss.subs(dict(zip(x, w, strict=True)))
        yield f"d = {d}", sp.expand(mean_at(loss, x, w, s, 1) - here - added)
        start = sum(mean_at(sp.diff(loss, xi, 2), x, w, s, 0) * si for xi, si in zip(x, s, strict=True)) / 2
        yield f"d = {d}, curvature at w alone is not enough", not is_zero(sp.expand(added - start))


@proof("C21", "two weights by enumeration of all roundings and of all mixtures, which are uniform in t")
def path_curvature_enumerated() -> Obligations:
    x, loss = quadratic_in_each(2)
    cells, t = [around("1"), around("2")], sp.Symbol("t", real=True)
    w = [cell[0] for cell in cells]

    def at(expr: Any, point: Any) -> Any:
        return expr.subs(dict(zip(x, point, strict=True)))

    added = sp.Integer(0)
    mixed = [[(1 - t, cell[0]), *((t * p, q) for p, q in law(*cell))] for cell in cells]
    for xi, cell in zip(x, cells, strict=True):
        curvature = sp.diff(loss, xi, 2)
        along = expect(lambda m, h=curvature: at(h, m), joint(mixed))
        added += K.variance(*cell) * sp.integrate(sp.expand(along), (t, 0, 1)) / 2
    smoothed = expect(lambda q: at(loss, q), joint([law(*cell) for cell in cells]))
    yield "smoothed loss", smoothed - at(loss, w) - added


@proof(
    "C21b",
    "two-layer linear net 2-2-2: along the path the curvature is linear in t; at w it misses the quartic term, at RR(w)"
    " it counts it twice, and the mean of both is exact",
)
def pairs_of_weights() -> Obligations:
    # One data point: the loss is an average over the data, so nothing is lost.
    inputs, target = sp.symbols("x1 x2", real=True), sp.symbols("y1 y2", real=True)
    a, b = sp.Matrix(2, 2, sp.symbols("a11 a12 a21 a22")), sp.Matrix(2, 2, sp.symbols("b11 b12 b21 b22"))
    error = b * a * sp.Matrix(inputs) - sp.Matrix(target)
    x = [*a, *b]
    loss = sp.expand((error.T * error)[0] / 2)
    w, s = sp.symbols("w1:9", real=True), sp.symbols("S1:9", real=True)
    t = sp.Symbol("t", real=True)

    def penalty(moment: Any) -> Any:
        return sum(mean_at(sp.diff(loss, xi, 2), x, w, s, moment) * si for xi, si in zip(x, s, strict=True)) / 2

    smoothed = mean_at(loss, x, w, s, 1) - mean_at(loss, x, w, s, 0)
    first, second = sp.Matrix(2, 2, s[:4]), sp.Matrix(2, 2, s[4:])
    into = [first[i, 0] * inputs[0] ** 2 + first[i, 1] * inputs[1] ** 2 for i in range(2)]
    quartic = sum((second[0, i] + second[1, i]) * into[i] for i in range(2)) / 2
    yield "linear in t", sp.diff(sp.expand(penalty(t)), t, 2)
    yield "at w", sp.expand(smoothed - penalty(0) - quartic)
    yield "at RR(w)", sp.expand(smoothed - penalty(1) + quartic)
    yield "mean of both", sp.expand(smoothed - (penalty(0) + penalty(1)) / 2)


@proof(
    "C22",
    "any L of degree 2 in each of two weights, q = RR(w): E[∂_i L(q) + ½ h_i(q) (lo + hi - 2w)] = ∂_i E L(RR(w))",
    "fixed-scale",
)
def sampled_gradient() -> Obligations:
    x, loss = quadratic_in_each(2)
    cells = [free("1"), free("2")]
    atoms = joint([law(*cell) for cell in cells])
    smoothed = expect(lambda q: loss.subs(dict(zip(x, q, strict=True))), atoms)
    for i, (xi, cell) in enumerate(zip(x, cells, strict=True)):
        sampled = sp.diff(loss, xi) + sp.diff(loss, xi, 2) * K.variance_dw(*cell) / 2
        found = expect(lambda q, f=sampled: f.subs(dict(zip(x, q, strict=True))), atoms)
        yield f"weight {i + 1}", sp.diff(smoothed, cell[0]) - found


@proof(
    "C22",
    "the same for the anchor of the levels: E[½ Σ h_i(q) dVar_i/dA] = d E L(RR(w)) / dA",
    "absmax",
)
def sampled_anchor_gradient() -> Obligations:
    x, loss = quadratic_in_each(2)
    anchor = sp.Symbol("A", real=True)
    units = [sp.symbols(f"c_lo{i} c_hi{i}", real=True) for i in (1, 2)]
    w = sp.symbols("w1 w2", real=True)
    cells = [(wi, anchor * lo, anchor * hi) for wi, (lo, hi) in zip(w, units, strict=True)]
    atoms = joint([law(*cell) for cell in cells])
    smoothed = expect(lambda q: loss.subs(dict(zip(x, q, strict=True))), atoms)
    sampled = sp.Add(
        *(
            sp.diff(loss, xi, 2) * K.variance_danchor(*cell, *unit) / 2
            for xi, cell, unit in zip(x, cells, units, strict=True)
        )
    )
    found = expect(lambda q: sampled.subs(dict(zip(x, q, strict=True))), atoms)
    yield "anchor", sp.diff(smoothed, anchor) - found
