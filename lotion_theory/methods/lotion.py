"""LOTION: descend the smoothed loss, the loss at the weights plus half the curvature-weighted rounding variance."""

from .. import kernels
from .rule import PLACES, Method, Place, Rule, at_rounded, at_weight, choice, ramped

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
    "fisher" (moving average of squared loss gradients, times the batch size). ``curvature_at``: where it is measured:
    "weight", "rounded" or "mixture" (claim C21); on quadratics these are one. ``refresh``: steps between curvatures.
    ``gradient_at``: "weight", or "rounded" for the gradient sampled there (claim C22), which needs that curvature."""
    if isinstance(settings["weight"], str) or not settings["weight"] >= 0:
        raise ValueError(f"weight = {settings['weight']!r}; must be a number that is not negative")
    attached = choice(settings, "scale", SCALES) == "attached"
    measured = choice(settings, "curvature_at", PLACES)
    sampled = choice(settings, "gradient_at", PLACES[:2]) == "rounded"
    if sampled and measured != "rounded":
        raise ValueError(f"gradient_at = 'rounded' needs curvature_at = 'rounded', not {measured!r}")
    if measured != "weight" and settings["curvature"] == "exact":
        raise ValueError(f"curvature_at = {measured!r}: curvature 'exact' is that of the expected loss already")
    return Rule(
        at_rounded if sampled else at_weight,
        toward_levels,
        through_lattice if attached else None,
        parameters=ramped(settings["weight"], 0.0, settings["ramp"]),
        noise=int(sampled),
        curvature=choice(settings, "curvature", CURVATURES),
        measured=measured,
        refresh=settings["refresh"],
        linear=False,
    )


METHOD = Method(
    "lotion",
    rule=rule,
    information="gradient at w (or sampled at RR(w)), diagonal curvature at w, RR(w) or a mixture",
    grid="absmax",
    source="Kwun et al., arXiv 2510.08757; attached scale: the full gradient of the smoothed loss",
    settings={
        "weight": 1.0,
        "ramp": 0.0,
        "scale": "attached",
        "curvature": "gauss_newton",
        "curvature_at": "weight",
        "refresh": 10,
        "gradient_at": "weight",
    },
    tuning={"weight": (0.3, 1.0, 3.0)},
    instead="LotionPenalty adds the gradient of the smoothed loss, with the curvature it finds",
)
