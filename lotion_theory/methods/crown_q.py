"""CROWN-Q: a penalty ``λ Σ h s²/12``, the loss that uniform rounding noise of step ``s`` adds.

As released, per block, ``h`` is the mean of ``w²``, s follows the largest weight, and the penalty is there only late in
training, together with STE. As its README has it, ``h = w²`` with s detached, which is weight decay of strength
``λ s²/6``. With the true curvature and s attached (ours) it is LOTION's penalty averaged over a uniform phase (C16).
"""

from .. import kernels
from ..arguments import number
from ..formats.codebooks import Codebook
from .rule import Method, Parameters, Place, Rule, check_moment, choice, step_over_top, straight_through

VARIANTS = ("released", "published", "true")


def weight_then_nearest(p: Place, a):
    """The loss at the weight, and late in training, ``a[2] = 1``, at the nearest level (late STE)."""
    return kernels.select(p.w, p.near, a[2])


def shrinking_late(p: Place, g, h, a):
    """``g + λ w s²/(6 n)`` late in training: the derivative of ``λ s²/12`` times the mean of ``w²`` with s fixed."""
    step = p.top * a[1]
    return g + a[2] * a[0] * p.w * (step * step) / (6 * p.n)


def through_maximum(p: Place, g, h, a):
    """A weight's share of the derivative of that penalty in ``top``, late in training."""
    return a[2] * a[0] * (p.w * p.w) * (p.top * (a[1] * a[1])) / (6 * p.n)


def shrinking(p: Place, g, h, a):
    """``g + λ w s²/6``; ``a = (λ, s/top, late)``."""
    step = p.top * a[1]
    return g + a[0] * p.w * (step * step) / 6


def through_step(p: Place, g, h, a):
    """``d/dtop`` of ``λ h s²/12``."""
    return a[0] * h * (p.top * (a[1] * a[1])) / 6


def rule(settings) -> Rule:
    """``weight``: λ. ``variant``: "released" (h the block's mean of w², attached, late), "published" (h = w²,
    detached, all along) or "true" (h the diagonal curvature, attached, all along). ``levels``: ``s = top / levels`` in
    the penalty, by default the step of the grid. ``late``: share of training from which the loss is taken at the
    nearest levels; 1.0 for never. ``refresh``: steps between curvatures."""
    weight, late, levels = number(settings["weight"], "weight", 0.0), settings["late"], settings["levels"]
    variant = choice(settings, "variant", VARIANTS)
    check_moment(settings, "late")
    if levels is not None:
        levels = number(levels, "levels", 2.0**-126)

    def with_book(book: Codebook) -> dict[str, Parameters]:
        step = step_over_top(book, "crown_q") if levels is None else 1 / levels
        return {"parameters": Parameters(lambda clock: (weight, step, clock.since(late, "late")))}

    if variant == "released":
        return Rule(weight_then_nearest, shrinking_late, through_maximum, with_book=with_book, linear=False)
    if variant == "published":
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
    settings={"weight": 0.01, "variant": "released", "levels": None, "late": 0.85, "refresh": 10},
    tuning={"weight": (0.001, 0.01, 0.1)},
)
