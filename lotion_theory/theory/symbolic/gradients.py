"""C13 to C15: the gradient of the smoothed loss, what surrogates lose of it, and the share of the moving lattice."""

from collections.abc import Iterator
from typing import Any

import sympy as sp

from ._lift import K, around, ends, expect, free, is_zero, joint, law, registry
from .losses import cell_values, quadratic

proof = registry.proof
Obligations = Iterator[tuple[str, Any]]


@proof(
    "C13",
    "∂L_smooth/∂w_i = E[L(q: i -> hi) - L(q: i -> lo)] / (hi_i - lo_i) for any loss (d = 2 and 3)",
    "fixed-scale",
)
def difference_gradient() -> Obligations:
    for d in (2, 3):
        cells, smoothed, f = cell_values(d)
        for i, (w, lo, hi) in enumerate(cells):
            others = joint([ends(*c) for j, c in enumerate(cells) if j != i])
            down, up = (expect(lambda v, e=e, i=i, f=f: f[(*v[:i], e, *v[i:])], others) for e in (0, 1))
            yield f"d = {d}, weight {i}", sp.diff(smoothed, w) - (up - down) / (hi - lo)


@proof(
    "C14",
    "E ∇L(RR(w)) = H (w - w*) = ∇L(w): straight-through on a randomized rounding sees no smoothing (d = 2)",
    "quadratic",
)
def straight_through_gradient() -> Obligations:
    h, target, _ = quadratic(2)
    cells = [around("1"), around("2")]
    atoms = joint([law(*cell) for cell in cells])
    plain = h * (sp.Matrix([c[0] for c in cells]) - target)
    for i in range(2):
        yield f"component {i}", expect(lambda q, i=i: (h * (sp.Matrix(q) - target))[i], atoms) - plain[i]


@proof(
    "C14",
    "E ∇L(w + σ ε) = ∇L(w) for σ² = Var held constant and ε symmetric: detached noise sees no smoothing (d = 2)",
    "quadratic",
)
def detached_noise_gradient() -> Obligations:
    h, target, loss = quadratic(2)
    cells = [around("1"), around("2")]
    w = sp.Matrix(sp.symbols("w1 w2", real=True))
    sigma = sp.Matrix(sp.symbols("sigma1 sigma2", positive=True))
    signs = joint([[(sp.Rational(1, 2), -1), (sp.Rational(1, 2), 1)]] * 2)
    noisy = expect(lambda e: loss(w + sp.Matrix([sigma[i] * e[i] for i in range(2)])), signs)
    for i in range(2):
        yield f"component {i}", sp.diff(noisy, w[i]) - (h * (w - target))[i]
    # The same noise has exactly the smoothed value: only its gradient is missing.
    matched = noisy.subs({sigma[i] ** 2: K.variance(*cells[i]) for i in range(2)})
    smoothed = expect(loss, joint([law(*cell) for cell in cells]))
    yield "the value is the smoothed one", sp.expand(matched) - smoothed


@proof(
    "C14",
    "∇L_smooth - ∇L = ½ H_ii ((hi - w) - (w - lo)), zero only at midpoints: what both surrogates lose (d = 2)",
    "fixed-scale",
)
def lost_signal() -> Obligations:
    h, target, loss = quadratic(2)
    cells = [free("1"), free("2")]
    smoothed = expect(loss, joint([law(*cell) for cell in cells]))
    plain = h * (sp.Matrix([c[0] for c in cells]) - target)
    for i, (w, lo, hi) in enumerate(cells):
        signal = sp.diff(smoothed, w) - plain[i]
        yield f"signal {i}", signal - h[i, i] * K.variance_dw(w, lo, hi) / 2
        yield f"midpoint {i}", signal.subs(w, (lo + hi) / 2)
        yield f"not identically zero {i}", not is_zero(signal)


@proof("C15", "∂Var/∂w, ∂Var/∂lo, ∂Var/∂hi and the derivatives of the probability are those of the formulas")
def partial_derivatives() -> Obligations:
    w, lo, hi = cell = free()
    for function, partials in (
        (K.variance, {w: K.variance_dw, lo: K.variance_dlo, hi: K.variance_dhi}),
        (K.prob_up, {lo: K.prob_up_dlo, hi: K.prob_up_dhi}),
    ):
        for symbol, partial in partials.items():
            yield f"derivative in {symbol}", sp.diff(function(*cell), symbol) - partial(*cell)


@proof(
    "C15",
    "dVar/dA = c_hi (w - lo) - c_lo (hi - w) for levels A c + z, z constant (z = 0: absmax; else a real zero point)",
)
def anchor_derivative() -> Obligations:
    w, anchor, c_lo, c_hi, z_lo, z_hi = sp.symbols("w A c_lo c_hi z_lo z_hi", real=True)
    cell = w, anchor * c_lo + z_lo, anchor * c_hi + z_hi
    yield "derivative", sp.diff(K.variance(*cell), anchor) - K.variance_danchor(*cell, c_lo, c_hi)


@proof(
    "C15",
    "block of 3: the total derivative of ½ Σ g_i Var_i in the largest weight is ½ Σ g_i variance_danchor · sign(w_max)",
    "absmax",
)
def absmax_total_derivative() -> Obligations:
    largest = sp.Symbol("w0", real=True)
    g = sp.symbols("g1 g2", real=True)
    units = [sp.symbols(f"c_lo{i} c_hi{i}", real=True) for i in (1, 2)]
    others = sp.symbols("w1 w2", real=True)
    for sign in (1, -1):
        anchor = sign * largest  # |w_max|, whichever sign the largest weight has
        cells = [(w, anchor * lo, anchor * hi) for w, (lo, hi) in zip(others, units, strict=True)]
        penalty = sum(gi * K.variance(*cell) for gi, cell in zip(g, cells, strict=True)) / 2
        through = sum(gi * K.variance_danchor(*cell, *unit) for gi, cell, unit in zip(g, cells, units, strict=True)) / 2
        yield f"largest weight, sign {sign:+d}", sp.diff(penalty, largest) - sign * through
        for w, gi, cell in zip(others, g, cells, strict=True):
            yield f"{w}, sign {sign:+d}", sp.diff(penalty, w) - gi * K.variance_dw(*cell) / 2


@proof("C15", "with s = A/c and w = s (k + f), dVar/ds = 2 s f (1-f) - w (1 - 2f)", "uniform")
def uniform_bracket() -> Obligations:
    s, k, f = sp.symbols("s k f", real=True)
    w = s * (k + f)
    bracket = K.variance_danchor(w, s * k, s * (k + 1), k, k + 1)
    yield "bracket", bracket - (2 * s * f * (1 - f) - w * (1 - 2 * f))


@proof(
    "C15",
    "w ∂Var/∂w + A ∂Var/∂A = 2 Var (Euler): scaling the block by t scales the attached penalty by t²",
    "absmax",
)
def euler_identity() -> Obligations:
    w, anchor, c_lo, c_hi = sp.symbols("w A c_lo c_hi", real=True)
    cell = w, anchor * c_lo, anchor * c_hi
    radial = w * K.variance_dw(*cell) + anchor * K.variance_danchor(*cell, c_lo, c_hi)
    yield "homogeneous of degree 2", radial - 2 * K.variance(*cell)


@proof(
    "C15",
    "any cubic loss: dL_smooth/dA = (L(hi)-L(lo)) dp/dA + (1-p) c_lo L'(lo) + p c_hi L'(hi), dp/dA by "
    "prob_up_dlo, prob_up_dhi",
    "absmax",
)
def smoothed_anchor_derivative() -> Obligations:
    w, anchor, c_lo, c_hi, x = sp.symbols("w A c_lo c_hi x", real=True)
    loss = sp.Add(*(sp.Symbol(f"k{i}") * x**i for i in range(4)))
    cell = w, anchor * c_lo, anchor * c_hi
    values = [loss.subs(x, level) for level in cell[1:]]
    slopes = [sp.diff(loss, x).subs(x, level) for level in cell[1:]]
    p = K.prob_up(*cell)
    dp = c_lo * K.prob_up_dlo(*cell) + c_hi * K.prob_up_dhi(*cell)
    smoothed = expect(lambda q: loss.subs(x, q), law(*cell))
    formula = (values[1] - values[0]) * dp + (1 - p) * c_lo * slopes[0] + p * c_hi * slopes[1]
    yield "derivative", sp.diff(smoothed, anchor) - formula
