"""CROWN-Q: a penalty ``λ Σ h s²/12``, the loss that uniform rounding noise of step ``s`` adds.

As published ``h = w²`` and s is detached, so that the penalty is weight decay of strength ``λ s²/6``. With the true
curvature and s attached it is LOTION's penalty averaged over a uniform phase (claim C16).
"""

from .. import kernels
from ..arguments import number
from ..formats.codebooks import Codebook
from .rule import Method, Parameters, Place, Rule, check_moment, choice, step_over_top, straight_through

VARIANTS = ("published", "true")


def weight_then_nearest(p: Place, a):
    """The loss at the weight, and late in training, ``a[2] = 1``, at the nearest level (late STE)."""
    return kernels.select(p.w, p.near, a[2])


def shrinking(p: Place, g, h, a):
    """``g + λ w s²/6``; ``a = (λ, s/top, late)``."""
    step = p.top * a[1]
    return g + a[0] * p.w * (step * step) / 6


def through_step(p: Place, g, h, a):
    """``d/dtop`` of ``λ h s²/12``."""
    return a[0] * h * (p.top * (a[1] * a[1])) / 6


def rule(settings) -> Rule:
    """``weight``: λ. ``variant``: "published" (h = w², detached) or "true" (h the diagonal curvature, attached).
    ``levels``: ``s = top / levels`` in the penalty, by default the step of the grid. ``late``: share of training from
    which the loss is taken at the nearest levels; 1.0 for never. ``refresh``: steps between curvatures."""
    weight, late, levels = number(settings["weight"], "weight", 0.0), settings["late"], settings["levels"]
    published = choice(settings, "variant", VARIANTS) == "published"
    check_moment(settings, "late")
    if levels is not None:
        levels = number(levels, "levels", 2.0**-126)

    def with_book(book: Codebook) -> dict[str, Parameters]:
        step = step_over_top(book, "crown_q") if levels is None else 1 / levels
        return {"parameters": Parameters(lambda clock: (weight, step, clock.since(late, "late")))}

    if published:
        return Rule(weight_then_nearest, shrinking, with_book=with_book, linear=False)
    return Rule(
        weight_then_nearest,
        straight_through,
        through_step,
        curvature="gauss_newton",
        refresh=settings["refresh"],
        with_book=with_book,
        linear=False,
    )


METHOD = Method(
    "crown_q",
    rule=rule,
    information="gradient at w, late at RTN(w); diagonal curvature in the variant 'true'",
    grid="absmax",
    source="'CROWN-Q + Full GPTQ + SWA/EMA Blend', a record of the parameter-golf competition; no paper",
    settings={"weight": 0.01, "variant": "published", "levels": None, "late": 0.85, "refresh": 10},
    tuning={"weight": (0.01, 0.1, 1.0)},
)
