"""C8 to C11 and C17: the smoothed loss of quadratic, polynomial, arbitrary and two-layer linear losses."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import sympy as sp

from ._lift import K, around, ends, expect, free, is_zero, joint, law, registry

proof = registry.proof
Obligations = Iterator[tuple[str, Any]]


def quadratic(d: int) -> tuple[Any, Any, Any]:
    """``(H, w*, L)`` with a symbolic symmetric ``H`` and ``L(q) = ½ (q - w*)ᵀ H (q - w*)``."""
    h = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"H{min(i, j) + 1}{max(i, j) + 1}", real=True))
    target = sp.Matrix(sp.symbols(f"t1:{d + 1}", real=True))

    def loss(q: Any) -> Any:
        e = sp.Matrix(q) - target
        return (e.T * h * e)[0] / 2

    return h, target, loss


def cell_values(d: int) -> tuple[list[Any], Any, dict[tuple[int, ...], Any]]:
    """``(cells, E L(RR), f)`` with one free symbol ``f[v]`` for the loss at each of the ``2^d`` vertices of a cell."""
    cells = [free(str(i + 1)) for i in range(d)]
    f = {v: sp.Symbol("f" + "".join(map(str, v))) for v in product((0, 1), repeat=d)}
    return cells, expect(lambda v: f[v], joint([ends(*cell) for cell in cells])), f


@proof("C8", "L_smooth = L + ½ Σ H_ii (hi_i - w_i)(w_i - lo_i) for any symmetric H (d = 2 and 3)", "quadratic")
def quadratic_smoothing() -> Obligations:
    for d in (2, 3):
        h, _, loss = quadratic(d)
        cells = [around(str(i + 1)) for i in range(d)]
        penalty = sum(h[i, i] * K.variance(*cell) for i, cell in enumerate(cells)) / 2
        smoothed = expect(loss, joint([law(*cell) for cell in cells]))
        yield f"d = {d}", smoothed - loss([w for w, _, _ in cells]) - penalty


def _fourth_moment(cell: tuple[Any, Any, Any]) -> Any:
    w, lo, hi = cell
    up, down = hi - w, w - lo
    return K.variance(*cell) * (up**2 - up * down + down**2)


@proof(
    "C9",
    "degree 4 in one dimension: L_smooth = L + ½ L'' Var + L''' m3 / 6 + L'''' m4 / 24, m4 = Var (u² - u d + d²)",
)
def polynomial_remainder() -> Obligations:
    x = sp.Symbol("x", real=True)
    coefficients = sp.symbols("c0:5", real=True)
    loss = sp.Add(*(c * x**i for i, c in enumerate(coefficients)))
    cell = around()
    for degree in (3, 4):
        part = loss.subs(coefficients[4], 0) if degree == 3 else loss
        terms = [part, sp.diff(part, x, 2) * K.variance(*cell) / 2, sp.diff(part, x, 3) * K.third_moment(*cell) / 6]
        terms += [sp.diff(part, x, 4) * _fourth_moment(cell) / 24]
        expansion = sp.Add(*terms).subs(x, cell[0])
        yield f"degree {degree}", expect(lambda q, part=part: part.subs(x, q), law(*cell)) - expansion


@proof("C9", "a cubic loss in two dimensions leaves exactly Σ_i L_iii m3_i / 6: mixed third moments vanish")
def cubic_remainder_two_weights() -> Obligations:
    x, y = sp.symbols("x y", real=True)
    loss = sp.Add(*(sp.Symbol(f"c{i}{j}") * x**i * y**j for i in range(4) for j in range(4 - i)))
    cells = around("1"), around("2")
    here = {x: cells[0][0], y: cells[1][0]}
    expansion = loss
    for symbol, cell in zip((x, y), cells, strict=True):
        expansion += sp.diff(loss, symbol, 2) * K.variance(*cell) / 2
        expansion += sp.diff(loss, symbol, 3) * K.third_moment(*cell) / 6
    smoothed = expect(lambda q: loss.subs({x: q[0], y: q[1]}), joint([law(*cell) for cell in cells]))
    yield "cubic", smoothed - expansion.subs(here)


@proof(
    "C10",
    "in a cell L_smooth is affine in each weight and equals L at the vertices, for any loss (d = 2 and 3)",
    "fixed-scale",
)
def multilinear_interpolation() -> Obligations:
    for d in (2, 3):
        cells, smoothed, f = cell_values(d)
        for i, (w, _, _) in enumerate(cells):
            yield f"d = {d}, second derivative {i}", sp.diff(smoothed, w, 2)
        for vertex, value in f.items():
            corner = {w: (lo, hi)[up] for (w, lo, hi), up in zip(cells, vertex, strict=True)}
            yield f"d = {d}, vertex {vertex}", smoothed.subs(corner) - value


@proof(
    "C11",
    "in a cell L_smooth has zero Laplacian, and it is the mean of its values at w ± h e_i: no strict interior minimum",
    "fixed-scale",
)
def no_interior_minimum() -> Obligations:
    h = sp.Symbol("h", positive=True)
    for d in (2, 3):
        cells, smoothed, _ = cell_values(d)
        yield f"d = {d}, Laplacian", sp.Add(*(sp.diff(smoothed, w, 2) for w, _, _ in cells))
        for w, _, _ in cells:
            yield f"d = {d}, mean value along {w}", smoothed.subs(w, w + h) + smoothed.subs(w, w - h) - 2 * smoothed


@proof(
    "C11",
    "from a vertex, the slope of L_smooth along edge i is (L(neighbour) - L(vertex)) / gap (d = 3): only single "
    "steps count",
    "fixed-scale",
)
def slope_along_edges() -> Obligations:
    cells, smoothed, f = cell_values(3)
    for i, (w, lo, hi) in enumerate(cells):
        corner = {cell[0]: cell[1] for j, cell in enumerate(cells) if j != i}
        neighbour = tuple(int(j == i) for j in range(3))
        yield f"edge {i}", sp.diff(smoothed.subs(corner), w) - (f[neighbour] - f[0, 0, 0]) / (hi - lo)


@proof(
    "C17",
    "two-layer linear net W2 W1 x, 2-2-2, mean-squared error: E L - GN model = (c/2) Σ_i (Σ_o S2_oi)(Σ_j S1_ij x_j²)",
)
def two_layer_linear() -> Obligations:
    # One data point (x, y) with symbolic entries: the loss is an average over the data, so nothing is lost.
    k = hidden = d = 2
    c = sp.Rational(2, k)
    x, y = sp.symbols(f"x1:{d + 1}", real=True), sp.symbols(f"y1:{k + 1}", real=True)
    first = [(1, i, j) for i in range(hidden) for j in range(d)]
    second = [(2, o, i) for o in range(k) for i in range(hidden)]
    keys = first + second
    weight, noise, s = ({key: sp.Symbol(f"{name}{n}") for n, key in enumerate(keys)} for name in "vzS")

    def loss(shift: int) -> Any:
        v = {key: weight[key] + shift * noise[key] for key in noise}
        hid = [sum(v[1, i, j] * x[j] for j in range(d)) for i in range(hidden)]
        return sum((sum(v[2, o, i] * hid[i] for i in range(hidden)) - y[o]) ** 2 for o in range(k)) / k

    # Every noise variable occurs to degree 2 at most, so three moments carry the whole expectation.
    cell = around()
    for name, power, value in (("mass", 0, 1), ("mean", 1, 0), ("variance", 2, K.variance(*cell))):
        yield f"{name} of the noise", expect(lambda q, n=power: (q - cell[0]) ** n, law(*cell)) - value
    smoothed = sp.Poly(loss(1), *noise.values())
    expected = sp.Integer(0)
    for powers, coefficient in smoothed.terms():
        if 1 not in powers:
            expected += coefficient * sp.Mul(*(s[key] for key, n in zip(keys, powers, strict=True) if n == 2))
    yield "degree of the noise", max(max(powers) for powers, _ in smoothed.terms()) <= 2
    pre = [sum(weight[1, i, j] * x[j] for j in range(d)) for i in range(hidden)]
    curvature = {(1, i, j): c * sum(weight[2, o, i] ** 2 for o in range(k)) * x[j] ** 2 for _, i, j in first}
    curvature |= {(2, o, i): c * pre[i] ** 2 for _, o, i in second}
    for key, g in curvature.items():
        yield f"Gauss-Newton and Hessian diagonals agree at {key}", sp.diff(loss(0), weight[key], 2) - g
    model = loss(0) + sum(g * s[key] for key, g in curvature.items()) / 2
    into = [sum(s[1, i, j] * x[j] ** 2 for j in range(d)) for i in range(hidden)]
    quartic = sum(s[2, o, i] * into[i] for _, o, i in second)
    yield "quartic term", expected - model - c / 2 * quartic


@proof("C17", "two-layer linear net 1-1-2 by enumeration of all 8 roundings: the same quartic term")
def two_layer_linear_enumerated() -> Obligations:
    x, y1, y2 = sp.symbols("x y1 y2", real=True)
    cells = [around(name) for name in ("1", "21", "22")]

    def loss(q: Any) -> Any:
        return ((q[1] * q[0] * x - y1) ** 2 + (q[2] * q[0] * x - y2) ** 2) / 2

    w = [cell[0] for cell in cells]
    s1, s21, s22 = (K.variance(*cell) for cell in cells)
    model = loss(w) + ((w[1] ** 2 + w[2] ** 2) * x**2 * s1 + (w[0] * x) ** 2 * (s21 + s22)) / 2
    difference = expect(loss, joint([law(*cell) for cell in cells])) - model
    yield "quartic term", difference - (s21 + s22) * s1 * x**2 / 2
    yield "it does not vanish", not is_zero(difference)
