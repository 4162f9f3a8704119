"""DSQ: gradients pass through a chain of tanh segments in place of the staircase.

In a cell, ``r = (w - lo) / (hi - lo)``, the soft staircase is ``φ(r) = ½ + ½ S tanh(k (r - ½))``, where
``S = 1 / tanh(k/2)`` makes it join the levels: the mean of ``φ'`` over a cell is 1. The loss is taken at the nearest
levels.
"""

import math

from .. import kernels
from ..functions import tanh
from .rule import Method, Place, Rule, at_nearest, constant


def soft_staircase(p: Place, g, h, a):
    """``g φ'(r)``, ``φ'(r) = ½ S k sech²(k (r - ½))``; ``a = (k, ½ S k)``. On a level r is 0."""
    t = tanh(a[0] * (kernels.prob_up(p.w, p.lo, p.hi) - 0.5))
    return g * (a[1] * (1 - t * t))


def with_slope(k: float) -> Rule:
    """The rule of slope ``k`` > 0; k -> 0 is STE, k -> ∞ the staircase."""
    return Rule(at_nearest, soft_staircase, parameters=constant(k, k / (2 * math.tanh(k / 2))))


def rule(settings) -> Rule:
    """``alpha``: in (0, 1), with ``k = log(2/α - 1)``, fixed (the paper learns it per layer). ``k``: the slope itself,
    in place of ``alpha``."""
    alpha, k = settings["alpha"], settings["k"]
    if not 0 < alpha < 1:
        raise ValueError(f"alpha = {alpha!r}; must lie in (0, 1)")
    if k is not None and not k > 0:
        raise ValueError(f"k = {k!r}; must be positive, or None to use alpha")
    return with_slope(math.log(2 / alpha - 1) if k is None else k)


METHOD = Method(
    "dsq",
    rule=rule,
    information="gradient at RTN(w)",
    grid="absmax",
    source="Gong et al., arXiv 1908.05033; fixed α = 0.4, absmax grid",
    settings={"alpha": 0.4, "k": None},
    tuning={"alpha": (0.2, 0.4, 0.6)},
)
