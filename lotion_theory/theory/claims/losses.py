"""C8, C9, C14-C17, C19: smoothed losses, their expansions, gradients and bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from ... import kernels
from ...formats.quantizer import Quantizer
from ...smoothing import Quadratic, closed_form, exact
from ...streams import Stream
from ._base import Outcome, claim, one_lattice, real_only, unbiased
from .blocks import describe, frozen
from .minima import quadratic, rationals
from .rational import rational


def independent_and_unbiased(q: Quantizer) -> bool | None:
    """Nothing clipped, and one lattice per block. Otherwise it depends on the weights, which is left open."""
    return True if unbiased(q) and one_lattice(q) else None


def if_unbiased(q: Quantizer) -> bool | None:
    """Nothing clipped; otherwise open, as above."""
    return True if unbiased(q) else None


def _diagonal_enough(q: Quantizer) -> bool | None:
    return False if not one_lattice(q) else independent_and_unbiased(q)


def bracketed(q: Quantizer) -> str | None:
    """Reason for claims in which a weight has one bracket."""
    return real_only(q) or (None if one_lattice(q) else "a weight has two brackets, one per drawn lattice")


C8 = claim(
    "C8", "quadratic closed form", "equality", "quadratic L, any H: E[L(RR(w))] = L(w) + ½ Σ H_ii Var_i",
    _diagonal_enough, real_only,
)  # fmt: skip
C8b = claim(
    "C8b", "quadratic, full covariance", "equality",
    "quadratic L: E[L(RR(w))] = L(E RR(w)) + ½ tr(H Cov RR(w)), clipping and draws included", applies=real_only,
)  # fmt: skip
C9 = claim(
    "C9", "second-order remainder", "bound",
    "|E[L(RR(w))] - L(w) - ½ Σ g_ii σ_i²| <= (M₃/6) Σ_k E|a_k·ε|³ for L = Σ_k φ(a_k·w)", if_unbiased, real_only,
)  # fmt: skip
C14 = claim(
    "C14", "straight-through has no signal", "equality", "quadratic L: E[∇L(RR(w))] = ∇L(w)", if_unbiased, real_only
)  # fmt: skip
C15 = claim(
    "C15", "the lattice moves", "equality",
    "dE/dw through the scale: finite differences of E = detached gradient + ½ Σ g_ii [c_hi(w-lo) - c_lo(hi-w)] ∂s/∂w",
    applies=real_only,
)  # fmt: skip
C16 = claim(
    "C16",
    "mean over the phase",
    "equality",
    "averaged over a cell: Var RR = gap²/6, twice RTN's squared error gap²/12",
    applies=real_only,
)
C17 = claim(
    "C17", "two-layer linear net", "equality",
    "E L = L + ½⟨g₁,S₁⟩ + ½⟨g₂,S₂⟩ + (c/2) Σ_i (Σ_o S₂[o,i]) (Σ_j S₁[i,j] m_j)", independent_and_unbiased, real_only,
)  # fmt: skip
C19 = claim(
    "C19", "bounds between the three losses", "bound",
    "|L_smooth - L|, |L_smooth - L∘cast| <= Lipschitz and smoothness bounds from gaps and distances to the lattice",
    independent_and_unbiased, bracketed,
)  # fmt: skip


def some_weights(q: Quantizer, purpose: str, count: int, d: int = 3) -> list[np.ndarray]:
    """Random blocks of eighths and, for scales that are drawn or clip, blocks around the top level ``c``."""
    top = q.codebook.high
    random = list(rationals(purpose, (count, d), -40, 40, 8))
    edge = [[top * f for f in (Fraction(17, 16), s * Fraction(33, 32), Fraction(1, 3))] for s in (1, -1)]
    fine = [top * (1 + Fraction(3, 2**12)), top * (1 + Fraction(1, 2**12)), Fraction(1, 3)]
    return random + [np.array([rational(v) for v in w[:d]], dtype=object) for w in (*edge, fine)]


def local_to_a_block(q: Quantizer) -> Quantizer:
    """One block for all weights. Two-level scales act between blocks only: there every weight is its own block."""
    if q.scale.couples_blocks:
        return q.with_partition("block=1")
    return frozen(q) if q.scale.is_frozen else q.with_partition("tensor")


@C8.check("exhaustive", "enumeration against the diagonal formula")
def exact_diagonal(q: Quantizer) -> Outcome:
    local, last = local_to_a_block(q), (0.0, 0.0)
    for n, w in enumerate(some_weights(q, "C8", 8)):
        loss = quadratic(f"C8/{n}", 3)
        found = exact.smoothed_loss(loss, w, local)
        stated = loss(w[None])[0] + closed_form.penalty(w, local, loss.curvature)
        last = (float(found), float(stated))
        if found != stated:
            note = (
                "weights above c·s_lo share the draw of the scale, so H's off-diagonal enters"
                if q.scale.is_drawn and unbiased(q)
                else ""
            )
            return Outcome(*last, n + 1, f"w = {describe(w)}", note=note)
    return Outcome(*last, n + 1)


@C8b.check("exhaustive", "enumeration against the full covariance")
def exact_covariance(q: Quantizer) -> Outcome:
    local, last = local_to_a_block(q), (0.0, 0.0)
    for n, w in enumerate(some_weights(q, "C8b", 8)):
        loss = quadratic(f"C8b/{n}", 3)
        found, stated = exact.smoothed_loss(loss, w, local), closed_form.smoothed_loss(loss, w, local)
        last = (float(found), float(stated))
        if found != stated:
            return Outcome(*last, n + 1, f"w = {describe(w)}")
    return Outcome(*last, n + 1)


class _LogCosh:
    """``L(w) = Σ_k log cosh(a_k·w)``: a generalised linear loss, whose Gauss-Newton matrix is its Hessian.

    ``|φ'''| = |2 tanh sech²| <= 4/(3√3)`` bounds the remainder.
    """

    third = 4 / (3 * 3**0.5)

    def __init__(self, directions: np.ndarray) -> None:
        self.directions = directions

    def __call__(self, points: np.ndarray) -> np.ndarray:
        z = np.abs(points @ self.directions.T)
        return (z + np.log1p(np.exp(-2 * z)) - np.log(2)).sum(axis=1)

    def curvature(self, w: np.ndarray) -> np.ndarray:
        z = self.directions @ w
        return (self.directions**2 / np.cosh(z)[:, None] ** 2).sum(axis=0)


@C9.check("property", "log-cosh losses, three lattice sizes, by enumeration")
def remainder_bound(q: Quantizer) -> Outcome:
    """Taylor with mean-zero noise: the first-order term vanishes, the second is the diagonal penalty (independent
    noise), the rest is at most (M₃/6) E|a·ε|³ per direction; a drawn scale adds ½ aᵀ Cov a, included as known."""
    generator = Stream(0, "claims/C9").numpy_generator()
    worst, checked, ratios = (0.0, 1.0), 0, []
    for _ in range(4):
        directions = generator.standard_normal((3, 4)) / 2
        w = generator.standard_normal(4)
        loss = _LogCosh(directions)
        for size in (1.0, 0.25, 0.0625):
            # Shrinking the block shrinks its lattice; the loss is taken around a fixed centre of expansion.
            centre = w * (1 - size)
            local = (
                q.with_partition("tensor")
                if not q.scale.is_frozen
                else q.with_partition("tensor").with_scale(2.0 * size)
            )
            law = exact.law(w * size, local)
            noise = (
                (law.points - w * size)
                if not q.scale.is_frozen
                else law.points - np.clip(w * size, law.points.min(0), law.points.max(0))
            )
            base = w * size + centre
            value = exact.expectation(law, loss(noise + base))
            second = loss(base[None])[0] + ((loss.curvature(base)) * (law.probs[:, None] * noise**2).sum(0)).sum() / 2
            if q.scale.is_drawn:
                along = noise @ directions.T
                bend = 1 / np.cosh(directions @ base) ** 2
                second = loss(base[None])[0] + (bend * (law.probs[:, None] * along**2).sum(0)).sum() / 2
            bound = loss.third / 6 * (law.probs[:, None] * np.abs(noise @ directions.T) ** 3).sum()
            # Rounding of the enumerated sum: a few hundred additions of numbers of size |L|.
            slack = 1e-12 * (1 + abs(value)) + 64 * abs(_mean_shift(law, noise, loss, base))
            checked += 1
            gap = abs(value - second)
            ratios.append((gap - slack) / bound if bound > 0 else 0.0)
            if ratios[-1] >= worst[0] / worst[1]:
                worst = (gap, bound)
            if gap > bound + slack:
                return Outcome(gap, bound, checked, f"w = {w.round(3).tolist()} × {size}", slack)
    return Outcome(*worst, checked, note=f"remainder / bound at most {max(ratios):.3g}")


def _mean_shift(law, noise: np.ndarray, loss: _LogCosh, base: np.ndarray) -> float:
    """First-order effect of the float error of the mean of the noise."""
    mean = (law.probs[:, None] * noise).sum(axis=0)
    return float(np.abs(np.tanh(loss.directions @ base) @ loss.directions @ mean)) if np.abs(mean).max() < 1e-9 else 0.0


@C14.check("exhaustive", "expected gradients at support points, exact")
def exact_no_signal(q: Quantizer) -> Outcome:
    local, last = local_to_a_block(q), (0.0, 0.0)
    for n, w in enumerate(some_weights(q, "C14", 8)):
        loss = quadratic(f"C14/{n}", 3)
        law = exact.law(w, local)
        found = (law.probs[:, None] * loss.gradient(law.points)).sum(axis=0)
        stated = loss.gradient(w[None])[0]
        at = int(np.argmax(np.asarray(abs(found - stated), dtype=float)))
        last = (float(found[at]), float(stated[at]))
        if (found != stated).any():
            return Outcome(*last, n + 1, f"w = {describe(w)}: clipping biases the mean")
    return Outcome(*last, n + 1)


_H = Fraction(1, 2**90)


@C15.check("exhaustive", "central differences of step 2⁻⁹⁰ in rational arithmetic")
def exact_moving_gradient(q: Quantizer) -> Outcome:
    """The smoothed loss is a smooth function of ``w`` between kinks, so a central difference of step h errs by O(h²);
    with h = 2⁻⁹⁰ a tolerance of 2⁻⁶⁰ leaves a factor 2¹²⁰ for the third derivative. Blocks have no ties and no weight
    but the extreme ones on a level; one on an end level that stays where it is, a kink, is left out."""
    local, checked, last, lost = local_to_a_block(q), 0, (0.0, 0.0), 0.0
    tolerance = Fraction(1, 2**60)
    primes = (7, 11, 13, 17)
    for n in range(4):
        loss = quadratic(f"C15/{n}", 4)
        numerators = rationals(f"C15/{n}/w", (4,), 1, 60)
        w = np.array([(-1) ** (i + n) * numerators[i] / p for i, p in enumerate(primes)], dtype=object)
        if n == 3:
            w[0], w[1] = (
                q.codebook.high * Fraction(17, 16) + Fraction(1, 7),
                -q.codebook.high * Fraction(33, 32) - Fraction(1, 11),
            )
        gradient = closed_form.smoothed_gradient(loss, w, local)
        detached = closed_form.smoothed_gradient(loss, w, local, moving=False)
        lost = max(lost, float(abs(gradient - detached).max()))
        kinks = _on_fixed_ends(local, w)
        for i in range(4):
            if kinks[i]:
                continue
            h = np.zeros(4, dtype=object) + rational(0)
            h[i] = _H
            quotient = (
                closed_form.smoothed_loss(loss, w + h, local) - closed_form.smoothed_loss(loss, w - h, local)
            ) / (2 * _H)
            checked += 1
            last = (float(gradient[i]), float(quotient))
            if abs(gradient[i] - quotient) > tolerance * (1 + abs(quotient)):
                return Outcome(*last, checked, f"weight {i + 1} of {describe(w)}", float(tolerance))
        if q.is_absmax:
            stated = _scale_term(q, w, loss.curvature)
            if (gradient - detached != stated).any():
                return Outcome(
                    float(abs(gradient - detached).max()),
                    float(abs(stated).max()),
                    checked,
                    f"scale term at {describe(w)}",
                )
    return Outcome(
        *last, checked, None, float(tolerance), f"detaching the scale loses up to {lost:.3g} of the gradient here"
    )


def _on_fixed_ends(q: Quantizer, w: np.ndarray) -> np.ndarray:
    """Which weights of one block are the lowest or the highest level of a lattice that does not move with them."""
    law = q.block_law(w)
    jacobian = q.scale.jacobian(law.x, q.codebook, law.kind)
    if any(part is not None for part in (jacobian.top, jacobian.bottom, jacobian.p, jacobian.shared)):
        return np.zeros(w.shape, bool)
    cell, last = law.branches[0].cell, len(q.codebook.levels) - 1
    ends = (cell.index_lo == cell.index_hi) & np.isin(cell.index_lo, (0, last))
    return (ends & (law.x == cell.lo)).reshape(w.shape).astype(bool)


def _scale_term(q: Quantizer, w: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Claim C15 written out for absmax: the extra gradient, all of it on the weight of largest magnitude."""
    size = abs(w).max()
    scale = size / q.codebook.high
    total = Fraction(0)
    for x, g in zip(w, curvature, strict=True):
        below = max((c for c in q.codebook.levels if c * scale <= x), default=q.codebook.low)
        above = min((c for c in q.codebook.levels if c * scale >= x), default=q.codebook.high)
        total += g / 2 * (above * (x - below * scale) - below * (above * scale - x)) if below != above else 0
    out = np.zeros(len(w), dtype=object) + Fraction(0)
    leader = int(np.argmax(abs(w)))
    out[leader] = total / q.codebook.high * (1 if w[leader] > 0 else -1)
    return out


@C16.check("exhaustive", "Simpson's rule, exact for quadratics, on every cell")
def exact_phase_average(q: Quantizer) -> Outcome:
    last, checked = (0.0, 0.0), 0
    for lo, hi in itertools.pairwise(q.codebook.levels):
        gap, mid = hi - lo, (lo + hi) / 2
        spread = [kernels.variance(x, lo, hi) for x in (lo, mid, hi)]
        mean = (spread[0] + 4 * spread[1] + spread[2]) / 6
        # RTN's squared error is the same parabola from either end, x² over half a gap.
        nearest = (0 + 4 * (gap / 4) ** 2 + (gap / 2) ** 2) / 6
        last = (float(mean), float(gap * gap / 6))
        checked += 1
        if mean != gap * gap / 6 or nearest != gap * gap / 12 or mean != 2 * nearest:
            return Outcome(*last, checked, f"cell [{lo}, {hi}]")
    return Outcome(*last, checked)


@C17.check("exhaustive", "all roundings of both layers, exact")
def exact_two_layer(q: Quantizer) -> Outcome:
    """``f = W₂ W₁ x`` with a mean-squared error over k outputs; both layers are rounded, each with its own scale."""
    last, cases, quartic = (0.0, 0.0), 0, Fraction(0)
    for net in two_layer_nets(q, "C17"):
        (s1, s2), (g1, g2) = net.variances, net.curvatures(net.first, net.second)
        rows = [sum(s1[i] * net.moments) for i in range(len(s1))]
        quartic = net.c / 2 * sum(s2[:, i].sum() * rows[i] for i in range(len(rows)))
        found = net.mean(net.loss)
        stated = net.loss(net.first, net.second) + (g1 * s1).sum() / 2 + (g2 * s2).sum() / 2 + quartic
        last = (float(found), float(stated))
        cases += 1
        if found != stated:
            return Outcome(*last, cases, str(net))
    return Outcome(*last, cases, note=f"the Gauss-Newton penalty alone misses {float(quartic):.3g}")


@dataclass(frozen=True, eq=False)
class TwoLayerNet:
    """``W₂ W₁ x`` of two inputs, two hidden units and two outputs, and the law of each layer's rounding.

    ``moments``: second moments of the inputs, which are uncorrelated. ``c``: 2 over the number of outputs.
    """

    first: np.ndarray
    second: np.ndarray
    target: np.ndarray
    moments: np.ndarray
    c: Fraction
    laws: tuple[exact.Law, exact.Law]
    variances: tuple[np.ndarray, np.ndarray]

    def __str__(self) -> str:
        return f"W₁ = {describe(self.first.ravel())}, W₂ = {describe(self.second.ravel())}"

    def mean(self, f: Callable[[np.ndarray, np.ndarray], Any]) -> Any:
        """``E f(RR(W₁), RR(W₂))``."""
        pairs = itertools.product(*(zip(law.points, law.probs, strict=True) for law in self.laws))
        return sum(p * r * f(a, b) for (a, p), (b, r) in pairs)

    def loss(self, a: np.ndarray, b: np.ndarray) -> Any:
        """``(c/2) Σ_o E((b a - target) x)_o²``."""
        gap = b.dot(a) - self.target
        return self.c / 2 * (gap**2 * self.moments).sum()

    def curvatures(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Diagonals of the Gauss-Newton matrix, which are those of the Hessian, at the layers ``a`` and ``b``."""
        first = self.c * (b**2).sum(axis=0)[:, None] * self.moments
        return first, self.c * (a**2 * self.moments).sum(axis=1) + 0 * b


def two_layer_nets(q: Quantizer, purpose: str, count: int = 3) -> Iterator[TwoLayerNet]:
    """Nets of eighths; the last one's first layer lies around the top level."""
    local = local_to_a_block(q)
    for n in range(count):
        first = rationals(f"{purpose}/{n}/1", (2, 2), -20, 20, 8)
        second = rationals(f"{purpose}/{n}/2", (2, 2), -20, 20, 8)
        if n == count - 1:
            top = q.codebook.high
            first[0, 0], first[0, 1] = top * Fraction(17, 16), top * Fraction(33, 32)
        yield TwoLayerNet(
            first, second, rationals(f"{purpose}/{n}/t", (2, 2), -10, 10, 8),
            np.array([rational(1), rational(3, 4)], dtype=object), Fraction(1),
            (exact.law(first, local), exact.law(second, local)), (local.variance(first), local.variance(second)),
        )  # fmt: skip


@C19.check("exhaustive", "Lipschitz and smooth losses, exact")
def exact_bounds(q: Quantizer) -> Outcome:
    """Derivation. Write ``g = hi - lo``, ``p`` the probability of going up, ``n = min(w - lo, hi - w)`` the distance to
    the lattice, all per weight; ``RR`` has mean ``w``.

    * ``E|RR - w| = 2 (hi-w)(w-lo)/g <= g/2``, so if ``|L(x) - L(y)| <= K |x - y|₁``:
      ``|L_smooth - L(w)| <= K Σ 2 (hi-w)(w-lo)/g``. Equality for ``L = |x - w|``.
    * ``E|RR - cast| = n``: RR differs from the nearest level with the probability ``n/g`` of the other one. So
      ``|L_smooth - L(cast)| <= K Σ n``. The smoothed and the quantized loss differ by at most K times the distance to
      the lattice: the gap closes as weights settle on levels, and needs no small step size.
    * If the Hessian lies in [m, M] (m may be negative): ``½ m Σ Var <= L_smooth - L(w) <= ½ M Σ Var``,
      ``Var = (hi-w)(w-lo) <= g²/4``; so smoothing raises a convex loss, by at most ``(M/8) Σ g²``.
    * Expanding at ``c = cast(w)``: ``L_smooth - L(c) - ∇L(c)·(w - c)`` lies in ``½ [m, M] Σ E(RR - c)²`` and
      ``E(RR - c)² = g n``.
    """
    local, checked = local_to_a_block(q), 0
    tightest: tuple[Any, Any] | None = None
    for n, w in enumerate(some_weights(q, "C19", 6)):
        lo, hi = local.bracket(w)
        cast, gap = local.cast(w), hi - lo
        safe = gap + (gap == 0)
        move = 2 * (hi - w) * (w - lo) / safe
        near, spread = abs(w - cast), (hi - w) * (w - lo)
        law = exact.law(w, local)
        kinks = rationals(f"C19/{n}/kinks", (2, 3), -24, 24, 8)
        slopes = rationals(f"C19/{n}/slopes", (2, 3), 1, 5)
        # The first Lipschitz loss has its kinks at w itself, where the bound is attained.
        for kink in (w, *kinks):
            for slope in slopes:

                def loss(points, kink=kink, slope=slope):
                    return (abs(points - kink) * slope).sum(axis=1)

                smooth = exact.expectation(law, loss(law.points))
                pairs = [
                    (abs(smooth - loss(w[None])[0]), (slope * move).sum()),
                    (abs(smooth - loss(cast[None])[0]), (slope * near).sum()),
                ]
                checked += len(pairs)
                for found, stated in pairs:
                    if stated and (tightest is None or found / stated > tightest[0] / tightest[1]):
                        tightest = (found, stated)
                    if found > stated:
                        return Outcome(float(found), float(stated), checked, f"Lipschitz loss at w = {describe(w)}")
        curvature = rationals(f"C19/{n}/h", (3,), -4, 6)
        quadratic_loss = Quadratic(curvature, rationals(f"C19/{n}/c", (3,), -24, 24, 8))
        low, high = curvature.min(), curvature.max()
        smooth = exact.expectation(law, quadratic_loss(law.points))
        first = smooth - quadratic_loss(w[None])[0]
        second = smooth - quadratic_loss(cast[None])[0] - (quadratic_loss.gradient(cast[None])[0] * (w - cast)).sum()
        for found, size in ((first, spread.sum()), (second, (gap * near).sum())):
            checked += 1
            if not low * size / 2 <= found <= high * size / 2:
                return Outcome(float(found), float(high * size / 2), checked, f"smooth loss at w = {describe(w)}")
    assert tightest is not None, "some weight is off the lattice"
    return Outcome(
        float(tightest[0]), float(tightest[1]), checked, note="attained by |x - w| losses: the bound cannot be improved"
    )
