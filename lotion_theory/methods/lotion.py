"""LOTION: descend the smoothed loss, the loss at the weights plus half the curvature-weighted rounding variance."""

from .. import kernels
from .rule import Method, Place, Rule, at_weight, choice, ramped

SCALES = ("attached", "detached")
CURVATURES = ("exact", "gauss_newton", "fisher")


def toward_levels(p: Place, g, h, a):
    """Loss gradient plus ``λ ½ h d Var/dw`` on a fixed lattice (claim C8)."""
    return g + a[0] * 0.5 * h * kernels.variance_dw(p.w, p.lo, p.hi)


def through_lattice(p: Place, g, h, a):
    """``λ ½ h d Var/d top``: what the moving lattice adds (claim C15)."""
    return a[0] * 0.5 * h * kernels.variance_danchor(p.w, p.lo, p.hi, p.unit_lo, p.unit_hi)


def rule(settings) -> Rule:
    """``weight``: λ. ``ramp``: share of training over which λ grows from 0 (0: constant). ``scale``: "attached" follows
    the moving lattice, "detached" does not. ``curvature``: "exact" (the exact expected loss), "gauss_newton" or
    "fisher" (moving average of squared loss gradients, times the batch size). ``refresh``: steps between curvatures."""
    if isinstance(settings["weight"], str) or not settings["weight"] >= 0:
        raise ValueError(f"weight = {settings['weight']!r}; must be a number that is not negative")
    attached = choice(settings, "scale", SCALES) == "attached"
    return Rule(
        at_weight,
        toward_levels,
        through_lattice if attached else None,
        parameters=ramped(settings["weight"], 0.0, settings["ramp"]),
        curvature=choice(settings, "curvature", CURVATURES),
        refresh=settings["refresh"],
        linear=False,
    )


METHOD = Method(
    "lotion",
    rule=rule,
    information="gradient at w, diagonal curvature",
    grid="absmax",
    source="Kwun et al., arXiv 2510.08757; attached scale: the full gradient of the smoothed loss",
    settings={"weight": 1.0, "ramp": 0.0, "scale": "attached", "curvature": "gauss_newton", "refresh": 10},
    tuning={"weight": (0.3, 1.0, 3.0)},
    instead="LotionPenalty adds the gradient of the smoothed loss, with the curvature it finds",
)
