"""Hestia: the mean of a softmax over the levels in place of rounding, at a temperature that falls to 0.

In code units, ``z = w c_max / top``, level ``c`` has probability ``p_c ∝ exp(-(z - c)²/τ)`` and the weight is replaced
by ``q(z) = Σ c p_c``; ``dq/dz = (2/τ) Var_p(c)``. As released, one code unit is the mean magnitude of the block, and
gradients go through it; on the absmax grid (ours) the scale is detached. The paper's factor on τ from the Hessian trace
of each tensor is left out: for a single tensor it is a constant.
"""

import math
from typing import Any

from .. import kernels
from ..formats.codebooks import Codebook
from ..functions import cos, exp
from .rule import Clock, Method, Parameters, Place, Rule, choice

SOFTEST = 1e-6
"""Added to every temperature, as in the released code."""


def _mean(p: Place, a):
    """``q / top`` and the variance of the levels over ``top²``, each level's weight taken relative to the nearest's.

    Exponents are ``-(z - c)² + (z - near)² = (c - near)(2 z - near - c) <= 0``, so nothing overflows.
    """
    z = p.w / (p.top + (p.top == 0))
    total, first, second = 0 * z, 0 * z, 0 * z
    for k in range(3, len(a)):
        away = a[k] - p.unit_near
        share = exp(a[1] * away * (2 * z - p.unit_near - a[k]))
        total = total + share
        first = first + share * away
        second = second + share * away * away
    first, second = first / total, second / total
    return p.unit_near + first, second - first * first


def at_softened(p: Place, a):
    """``(1 - share) w + share q``; the nearest level at temperature 0. ``a = (share, c_max²/τ, cold, units ...)``."""
    mean, _ = _mean(p, a)
    return (1 - a[0]) * p.w + a[0] * kernels.select(p.top * mean, p.near, a[2])


def through_softmax(p: Place, g, h, a):
    """``g ((1 - share) + share dq/dz)``; STE at temperature 0."""
    _, variance = _mean(p, a)
    return g * ((1 - a[0]) + a[0] * kernels.select(2 * a[1] * variance, 1.0, a[2]))


def through_mean(p: Place, g, h, a):
    """What reaches the scale: ``g share (q - z dq/dz)`` over ``c_max``; at temperature 0 ``g`` times the nearest code,
    the rounding having no derivative of its own there."""
    mean, variance = _mean(p, a)
    z = p.w / (p.top + (p.top == 0))
    return g * (a[0] * kernels.select(mean - z * (2 * a[1] * variance), p.unit_near, a[2]))


def schedule(tau0: float, warm: float, clock: Clock):
    """``(share, τ)``: the share grows to 1 over ``warm``, then τ falls from τ₀ to 0 along a cosine."""
    return clock.ramp(0.0, warm, "warm"), tau0 * (1 + cos(math.pi * clock.ramp(warm, 1.0, "warm"))) / 2


def rule(settings) -> Rule:
    """``tau0``: first temperature in squared code units; the paper's 0.35089 is the best for ternary weights, and on
    integers 1 is nearly the identity. ``warm``: share of training over which the softmax replaces the weights.
    ``scale``: "absmean" (as released, attached) or "absmax" (detached)."""
    tau0, warm = settings["tau0"], settings["warm"]
    released = choice(settings, "scale", ("absmean", "absmax")) == "absmean"
    if not tau0 >= 0:
        raise ValueError(f"tau0 = {tau0!r}; must not be negative")
    if not 0 <= warm < 1:
        raise ValueError(f"warm = {warm!r}; must lie in [0, 1)")

    def with_book(book: Codebook) -> dict[str, Any]:
        units, high = tuple(float(v) for v in book.units), float(book.high)

        def columns(clock: Clock):
            share, tau = schedule(tau0, warm, clock)
            return share, high**2 / (tau + SOFTEST), tau <= 0, *units

        return {"parameters": Parameters(columns), **({"rms": high} if released else {})}

    if released:
        return Rule(at_softened, through_softmax, through_mean, top="absmean", with_book=with_book)
    return Rule(at_softened, through_softmax, with_book=with_book)


METHOD = Method(
    "hestia",
    rule=rule,
    information="gradient at softened w",
    grid="absmean",
    source="Wang et al., arXiv 2601.20745, without Hessian temperatures",
    settings={"tau0": 0.35089, "warm": 0.2, "scale": "absmean"},
    tuning={"tau0": (0.1, 0.35089, 1.0)},
)
