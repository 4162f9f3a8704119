"""Weights, losses and formats shared by the tests of smoothing: exact rationals first, floats made from them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from lotion_theory import Quadratic, Quantizer
from lotion_theory.formats.catalog import FORMATS

REAL = tuple(f for f in FORMATS if not Quantizer.parse(f).codebook.is_complex)
DRAWN = tuple(f for f in REAL if Quantizer.parse(f).scale.is_drawn)
_PRIMES = (11, 13, 17, 19, 23, 29, 31, 37)


def local(text: str, partition: str = "tensor") -> Quantizer:
    """A format on another partition; ``frozen`` on the lattice of unit scale."""
    q = Quantizer.parse(text).with_partition(partition)
    return q.with_scale(Fraction(1)) if q.scale.is_frozen else q


def array(values: object) -> np.ndarray:
    """An object array of Fractions from nested sequences of numbers."""
    found = np.asarray(values, dtype=object)
    out = np.empty(found.shape, dtype=object)
    out.reshape(-1)[:] = [Fraction(v) for v in found.reshape(-1)]
    return out


def weights(q: Quantizer, d: int, seed: int) -> np.ndarray:
    """``d`` exact weights about the size of the codebook, of both signs, without ties and off every dyadic level.

    For odd seeds the first one lies a little above the top level, where a stored scale may clip it or leave slack.
    Where a stored scale is drawn, the leaders lie in the zone between two scales, with another weight above the fine
    lattice's top and one of the other sign: there conditional means, probabilities and couplings all differ from zero.
    """
    rng = np.random.default_rng([seed, d])
    top = q.codebook.high
    # Quotients by different primes: no two are equal, none is a level of a dyadic lattice.
    w = np.array([top * Fraction(int(rng.integers(1, p)), int(p)) for p in rng.permutation(_PRIMES)[:d]], dtype=object)
    w = w * rng.choice([-1, 1], d)
    if seed % 2:
        w[0] = w[0] * top / abs(w[0]) * Fraction(37, 35)
    if q.scale.is_drawn:
        size = q.partition.size or d
        for start in range(0, d, size):
            threshold, _, reach = (p[0, 0] for p in zone(q))
            share = Fraction(int(rng.integers(20, 80)), 101)
            sign = int(rng.choice([-1, 1]))
            w[start] = sign * (threshold + (reach - threshold) * share)
            w[start + 1] = -sign * (threshold + (reach - threshold) * share * Fraction(int(rng.integers(20, 80)), 103))
    return w


def zone(q: Quantizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``(T, p, T⁺)`` of a drawn scale for a leader just above the top level at unit scale."""
    just_above = array([[q.codebook.high * (1 + Fraction(1, 2**40))]])
    return q.with_partition("tensor").branches(just_above)[1].draw.mixture


def quadratic(d: int, seed: int, diagonal: bool = False) -> Quadratic:
    """A random quadratic with integer Hessian, indefinite, dense unless asked otherwise; exact."""
    rng = np.random.default_rng([seed, d, 1])
    half = rng.integers(-4, 5, (d,) if diagonal else (d, d))
    center = array([Fraction(int(k), 8) for k in rng.integers(-24, 25, d)])
    return Quadratic(array((half if diagonal else half + half.T).tolist()), center)


def as_float(loss: Quadratic) -> Quadratic:
    """The same quadratic in float64."""
    return Quadratic(loss.hessian.astype(float), loss.center.astype(float), float(loss.offset))


class Polynomial:
    """``L(w) = Σ_k (a_k·w)³/6 + (b_k·w)⁴/24``: not a quadratic, exact on Fractions, with its gradient."""

    def __init__(self, d: int, seed: int, terms: int = 2) -> None:
        rng = np.random.default_rng([seed, d, 2])
        self.cubic, self.quartic = (array(rng.integers(-2, 3, (terms, d)).tolist()) / 2 for _ in range(2))

    def __call__(self, points: np.ndarray) -> np.ndarray:
        a, b = points @ self.cubic.T, points @ self.quartic.T
        return (a**3).sum(axis=1) / 6 + (b**4).sum(axis=1) / 24

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """``Σ_k a_k (a_k·w)²/2 + b_k (b_k·w)³/6``."""
        a, b = points @ self.cubic.T, points @ self.quartic.T
        return (a**2) @ self.cubic / 2 + (b**3) @ self.quartic / 6


def magnitude(loss: Quadratic, w: np.ndarray) -> float:
    """A bound on ``|L|`` and on its parts at any support point of the block: half the sum of |H_ij| times squares."""
    reach = float(np.abs(w).max() + np.abs(loss.center.astype(float)).max())
    return float(np.abs(loss.hessian.astype(float)).sum()) * (2 * reach) ** 2 / 2 + abs(float(loss.offset))


def amplification(q: Quantizer, w: np.ndarray) -> float:
    """By how much a drawn scale magnifies the rounding of ``w``: p = (lead - T)/width is a quotient of a difference, and
    conditional means divide by p once more. 1 on one lattice."""
    branches = q.branches(w)
    if len(branches) == 1:
        return 1.0
    threshold, p, reach = (np.asarray(part, dtype=float) for part in branches[1].draw.mixture)
    return float((reach / (p * (reach - threshold))).max()) ** 2
