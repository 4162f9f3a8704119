"""C21, C22: curvature along mixtures of ``w`` and ``RR(w)``, and gradients sampled at ``RR(w)``."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...formats.quantizer import Quantizer
from ...smoothing import closed_form, exact, gradients, path_curvature
from ._base import Outcome, claim, one_lattice, real_only
from .blocks import describe
from .losses import bracketed, independent_and_unbiased, local_to_a_block, some_weights, two_layer_nets
from .minima import rationals

C21 = claim(
    "C21", "path curvature", "equality",
    "L quadratic in each weight: E[L(RR(w))] = L(w) + ½ Σ σ_i² ∫₀¹ E[h_i(m_t)] dt, m_t taking each weight from RR(w) "
    "with probability t, else from w",
    independent_and_unbiased, real_only,
)  # fmt: skip
C21b = claim(
    "C21b", "pairs of weights", "equality",
    "two-layer linear net: curvature at w misses the quartic term, curvature at RR(w) counts it twice; the mean of "
    "both is exact",
    independent_and_unbiased, real_only,
)  # fmt: skip
C22 = claim(
    "C22", "sampled gradient", "equality",
    "L quadratic in each weight, q = RR(w): E[∇L(q) + ½ h(q)·∇Var] = ∇E[L(RR(w))], lattice fixed or moving",
    one_lattice, bracketed,
)  # fmt: skip


class QuadraticInEach:
    """``L(w) = Σ_k c_k Π_i w_i^e_ki`` with ``e`` at most 2: a random polynomial of few terms.

    ``coefficients`` (k,), ``powers`` (k, d) of 0, 1 and 2. The first term has the highest degree, all weights squared:
    every weight's curvature then depends on the others.
    """

    def __init__(self, purpose: str, d: int, terms: int = 6) -> None:
        self.coefficients = rationals(f"{purpose}/c", (terms,), 1, 9, 8)
        self.powers = rationals(f"{purpose}/e", (terms, d), 0, 2).astype(int)
        self.powers[0] = 2

    def _sum(self, points: np.ndarray, factors: np.ndarray, powers: np.ndarray) -> np.ndarray:
        """``Σ_k c_k f_k Π_i w_i^e_ki`` for each point."""
        table = np.stack([0 * points + 1, points, points**2])  # (3, n, d)
        total: Any = 0
        for c, f, e in zip(self.coefficients, factors, powers, strict=True):
            if f:
                total = total + c * int(f) * np.prod([table[k, :, i] for i, k in enumerate(e)], axis=0)
        return total + 0 * points[:, 0]

    def _derivative(self, points: np.ndarray, order: int) -> np.ndarray:
        columns = []
        for i in range(points.shape[1]):
            lowered = self.powers.copy()
            lowered[:, i] = np.maximum(lowered[:, i] - order, 0)
            own = self.powers[:, i]
            columns.append(self._sum(points, own if order == 1 else own * (own - 1), lowered))
        return np.stack(columns, axis=1)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        return self._sum(points, np.ones(len(self.powers), dtype=int), self.powers)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """Gradients at ``points`` (n, d)."""
        return self._derivative(points, 1)

    def curvature_at(self, w: np.ndarray) -> np.ndarray:
        """Diagonal of the Hessian at ``w`` (d,); the entry of a weight does not depend on it."""
        return self._derivative(w[None], 2)[0]


@C21.check("exhaustive", "all roundings and all mixtures, exact")
def exact_path(q: Quantizer) -> Outcome:
    """Let each weight switch from ``w_i`` to ``RR(w)_i`` at its own time, uniform on [0, 1], and add up what the loss
    does at the switches. Given the others, a switch adds ``½ h_i σ_i²`` in mean: the loss is quadratic in the weight,
    its rounding independent of theirs and of mean ``w_i``. At time ``t`` the others have switched with probability
    ``t`` each."""
    local, last, off = local_to_a_block(q), (0.0, 0.0), 0.0
    for n, w in enumerate(some_weights(q, "C21", 2, 4)):
        loss = QuadraticInEach(f"C21/{n}", len(w))
        found = exact.smoothed_loss(loss, w, local)
        stated = closed_form.second_order_loss(loss, w, local, path_curvature(loss, w, local))
        start = closed_form.second_order_loss(loss, w, local, loss.curvature_at(w))
        off = max(off, abs(float((start - found) / found)) if found else 0.0)
        last = (float(found), float(stated))
        if found != stated:
            return Outcome(*last, n + 1, f"w = {describe(w)}")
    return Outcome(*last, n + 1, note=f"curvature at w alone is off by up to {off:.2g} of the smoothed loss")


@C21b.check("exhaustive", "all roundings of both layers, exact")
def exact_pairs(q: Quantizer) -> Outcome:
    """The integrand of C21 is linear in ``t`` where weights interact in pairs only, so its mean is that of its ends."""
    last, cases, quartic = (0.0, 0.0), 0, 0.0
    for net in two_layer_nets(q, "C21b"):

        def penalty(a, b, net=net):
            return sum((g * s).sum() / 2 for g, s in zip(net.curvatures(a, b), net.variances, strict=True))

        found, plain = net.mean(net.loss), net.loss(net.first, net.second)
        at_weight, at_rounded = penalty(net.first, net.second), net.mean(penalty)
        last = (float(found), float(plain + (at_weight + at_rounded) / 2))
        missed, twice = found - plain - at_weight, at_rounded - at_weight
        cases, quartic = cases + 1, float(missed)
        if found != plain + (at_weight + at_rounded) / 2 or twice != 2 * missed:
            return Outcome(*last, cases, str(net))
    return Outcome(*last, cases, note=f"curvature at w misses {quartic:.3g}, at RR(w) it counts twice that")


@C22.check("exhaustive", "expected gradients at support points, exact")
def exact_sampled_gradient(q: Quantizer) -> Outcome:
    """Along its own weight a quadratic's chord from ``lo`` to ``hi`` has the slope at the middle, ``L_i'(q) + h_i
    ((lo + hi)/2 - q_i)``, whatever ``q_i`` is; in mean ``q_i`` is ``w_i``. The levels' share is that of the variance,
    weighted with ``½ h(q)``, in the same way."""
    local, last, checked = local_to_a_block(q), (0.0, 0.0), 0
    for n, w in enumerate(some_weights(q, "C22", 3)):
        loss = QuadraticInEach(f"C22/{n}", len(w))
        law = exact.law(w, local)
        for moving in (False, True):
            each = gradients.corrected(loss, local, w, law.points, moving)
            found = (law.probs[:, None] * each).sum(axis=0)
            stated = gradients.exact(loss, w, local, moving)
            at = int(np.argmax(np.asarray(abs(found - stated), dtype=float)))
            last = (float(found[at]), float(stated[at]))
            checked += 1
            if (found != stated).any():
                return Outcome(*last, checked, f"w = {describe(w)}, {'moving' if moving else 'fixed'} lattice")
    return Outcome(*last, checked)
