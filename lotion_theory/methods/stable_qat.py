"""StableQAT: LSQ whose gradient in the weights is that of a damped Fourier surrogate of rounding.

Rounding, turned by 45°, is a triangle wave; its first harmonic at amplitude ``A``, turned back, has the slope
``(1 - κ c) / (1 + κ c)`` with ``κ = √2 π A`` and ``c = cos π(w/s - round(w/s))``: least on the levels, 1 midway between
two. ``A = 0`` is LSQ, or QAT on the absmax grid.
"""

import math

from .. import kernels
from ..functions import cos
from .lsq import STEP, through_step
from .rule import Method, Place, Rule, at_nearest, choice, constant

LARGEST = 1 / (math.sqrt(2) * math.pi)
"""Amplitude at which the slope on the levels is 0; beyond it, negative."""


def through_surrogate(p: Place, g, h, a):
    """``g`` times the slope inside the range, 0 beyond; ``a[0]``: κ. On a level, where the cell is empty, c is 1."""
    c = abs(cos(math.pi * kernels.prob_up(p.w, p.lo, p.hi)))
    return g * (abs(p.w) <= p.top) * ((1 - a[0] * c) / (1 + a[0] * c))


def rule(settings) -> Rule:
    """``amplitude``: A. ``grid``: "learned" (a step per block, as released) or "absmax"."""
    amplitude = settings["amplitude"]
    if not 0 <= amplitude <= LARGEST:
        raise ValueError(f"amplitude = {amplitude!r}; must lie in [0, {LARGEST:.3f}]")
    kappa = constant(math.sqrt(2) * math.pi * amplitude)
    if choice(settings, "grid", ("learned", "absmax")) == "absmax":
        return Rule(at_nearest, through_surrogate, parameters=kappa)
    return Rule(at_nearest, through_surrogate, through_step, parameters=kappa, top="learned", learned=STEP)


METHOD = Method(
    "stable_qat",
    rule=rule,
    information="gradient at RTN(w)",
    grid="learned",
    source="Chen et al., arXiv 2601.19320, first harmonic, with LSQ's step; a symmetric range",
    settings={"amplitude": 0.2, "grid": "learned"},
    tuning={"amplitude": (0.05, 0.1, 0.2)},
)
