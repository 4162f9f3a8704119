"""DiffQ: additive noise as large as a rounding error in place of rounding, at a fixed bit width.

With the scale detached the noise moves no expectation on a quadratic (claim C14): training is then full precision's.
"""

import math

from .rule import Method, Place, Rule, choice, constant, step_over_top, straight_through


def at_noisy(p: Place, a):
    """``w + s ξ`` with ``ξ`` uniform of mean 0; ``a[0]``: the width of ``s ξ`` over ``top``."""
    return p.w + p.top * (a[0] * (p.u - 0.5))


def through_step(p: Place, g, h, a):
    """``g ξ ds/dtop``: what reaches the scale."""
    return g * (a[0] * (p.u - 0.5))


def rule(settings) -> Rule:
    """``scale``: "attached", as in the released code, or "detached". ``variance``: of ξ, the noise in steps: 1/12 for
    the paper's uniform noise, 1/4 for as much as the released code's default, a Gaussian. The noise is uniform in any
    case; on a quadratic the expected loss knows of it by its variance alone."""
    attached = choice(settings, "scale", ("attached", "detached")) == "attached"
    if not settings["variance"] >= 0:
        raise ValueError(f"variance = {settings['variance']!r}; must not be negative")
    width = math.sqrt(12 * settings["variance"])
    return Rule(
        at_noisy,
        straight_through,
        through_step if attached else None,
        noise=1,
        with_book=lambda book: {"parameters": constant(width * step_over_top(book, "diffq"))},
    )


METHOD = Method(
    "diffq",
    rule=rule,
    information="gradient at w + noise",
    grid="absmax",
    source="Défossez et al., arXiv 2104.09987, at a fixed bit width; the step is that of the absmax grid",
    settings={"scale": "attached", "variance": 1 / 12},
    tuning={"variance": (1 / 12, 1 / 4)},
)
