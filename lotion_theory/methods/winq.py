"""WinQ: LSQ whose weights are set back toward their levels a few times, with noise under the rounding in between.

After each of ``resets`` equal parts of training ``w`` becomes ``α w + (1 - α) RTN(w)``; the moments of the optimizer
stay. The noise is uniform here, with the standard deviation of the released Gaussian's.
"""

import math

from .. import kernels
from ..arguments import count
from .lsq import STEP, through_step
from .rule import Clock, Method, Parameters, Place, Rule, inside_range


def at_noisy_nearest(p: Place, a):
    """The level nearest to ``w + ξ``, if that is one of the two around w; ``a[0]``: the width of ξ over ``top``."""
    up = p.w + p.top * (a[0] * (p.u - 0.5)) > (p.lo + p.hi) / 2
    return kernels.select(p.lo, p.hi, up)


def toward_nearest(p: Place, a):
    """``w - a[1] (w - near)``, where ``a[1]`` is 1 - α at the end of a part, else 0."""
    return p.w - a[1] * (p.w - p.near)


def rule(settings) -> Rule:
    """``alpha``: α. ``resets``: how many parts training has. ``noise``: standard deviation of ξ over the highest level
    of the block (the released .001 is absolute)."""
    alpha, noise = settings["alpha"], settings["noise"]
    resets = count("resets", settings["resets"])
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha = {alpha!r}; must lie in [0, 1]")
    if not 0 <= noise < 0.25:
        raise ValueError(f"noise = {noise!r}; must lie in [0, 0.25)")
    width = math.sqrt(12) * noise

    def columns(clock: Clock):
        return width, (1 - alpha) * clock.ends(resets)

    return Rule(
        at_noisy_nearest,
        inside_range,
        through_step,
        parameters=Parameters(columns),
        top="learned",
        learned=STEP,
        noise=1,
        reset=toward_nearest,
    )


METHOD = Method(
    "winq",
    rule=rule,
    information="gradient at RTN(w + noise)",
    grid="learned",
    source="Li et al., arXiv 2605.17471, as released: α = 0.2, a few resets, on LSQ; uniform noise",
    settings={"alpha": 0.2, "resets": 4, "noise": 0.003},
    tuning={"noise": (0.001, 0.003, 0.01)},
)
