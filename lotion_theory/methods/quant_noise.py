"""Quant-Noise: in each step a random part of the weights is rounded (STE there), the rest stays as it is.

On a quadratic the expected gradient is STE's at ``p RTN(w) + (1 - p) w``.
"""

from .. import kernels
from ..arguments import count
from .rule import Method, Place, Rule, constant, straight_through


def at_partly_rounded(p: Place, a):
    """The nearest level with probability ``a[0]``, else the weight."""
    return kernels.select(p.w, p.near, p.u < a[0])


def rule(settings) -> Rule:
    """``p``: share of weights rounded in a step; 1 is QAT, 0 is PTQ. ``group``: consecutive weights that are rounded
    together."""
    if not 0 <= settings["p"] <= 1:
        raise ValueError(f"p = {settings['p']!r}; must lie in [0, 1]")
    group = count("group", settings["group"])
    return Rule(at_partly_rounded, straight_through, parameters=constant(settings["p"]), noise=group)


METHOD = Method(
    "quant_noise",
    rule=rule,
    information="gradient at partly rounded w",
    grid="absmax",
    source="Fan, Stock et al., arXiv 2004.07320, scalar quantization",
    settings={"p": 0.5, "group": 8},
    tuning={"p": (0.1, 0.5, 0.9)},
    any_format=True,
)
