"""PARQ: the loss at a proximal map of the weights that turns from the identity into rounding to nearest.

The map is that of a convex piecewise-affine regulariser: within a cell it magnifies the distance to the midpoint by
``1/ρ`` and stops at the levels; ρ falls from 1 to 0 along a sigmoid. The gradient goes to the weights unchanged.
"""

import math

from .. import kernels
from ..functions import exp
from .rule import Clock, Method, Parameters, Place, Rule, check_moment, straight_through

LEAST = 2.0**-100
"""The smallest ρ that is divided by; below it the map is rounding in every type."""


def at_proximal(p: Place, a):
    """``clip(m + (w - m)/ρ, lo, hi)`` around the midpoint m of the cell; the nearest level at ρ = 0.

    ``a = (1/ρ, whether ρ = 0)``.
    """
    middle = (p.lo + p.hi) / 2
    x = middle + (p.w - middle) * a[0]
    x = kernels.select(x, p.lo, x < p.lo)
    return kernels.select(kernels.select(x, p.hi, x > p.hi), p.near, a[1])


def inverse_slope(done, steepness: float):
    """ρ at a share of the annealing, an array or tensor in [0, 1]: a falling sigmoid, scaled to run from 1 to 0."""
    first, last = (1 / (1 + math.exp(side * steepness / 2)) for side in (-1, 1))
    return (1 / (1 + exp(steepness * (done - 0.5))) - last) / (first - last)


def rule(settings) -> Rule:
    """``steepness``: of the sigmoid, nearly linear below 1. ``begin``, ``end``: shares of training (or steps) between
    which the map turns."""
    steepness, begin, end = settings["steepness"], settings["begin"], settings["end"]
    if not 0 < steepness < 700:
        raise ValueError(f"steepness = {steepness!r}; must lie between 0 and 700")
    for name in ("begin", "end"):
        check_moment(settings, name)

    def columns(clock: Clock):
        done = clock.ramp(begin, end, "begin")
        rho = inverse_slope(done, steepness)
        hard = (rho < LEAST) | (done >= 1)
        return 1 / (rho + hard), hard

    return Rule(at_proximal, straight_through, parameters=Parameters(columns))


METHOD = Method(
    "parq",
    rule=rule,
    information="gradient at the proximal map of w",
    grid="absmax",
    source="Jin et al., arXiv 2503.15748, as released in torchao (MaxUnifQuantizer), levels renewed at every step",
    settings={"steepness": 10.0, "begin": 0.0, "end": 1.0},
    tuning={"steepness": (1.0, 10.0, 100.0)},
)
