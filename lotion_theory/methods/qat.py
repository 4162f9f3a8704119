"""QAT with the straight-through estimator (STE): the loss gradient at the rounded weights moves the weights."""

from .rule import Method, Place, Rule, at_nearest, choice, straight_through


def through_scale(p: Place, g, h, a):
    """Share of the gradient that goes through the scale, rounding itself taken as the identity: ``g (near - w) / top``.

    With ``Q(w)_i = s round(w_i / s)``, ``dQ_i/ds = round(w_i/s) - w_i/s`` under STE.
    """
    return g * (p.near - p.w) / (p.top + (p.top == 0))


def rule(settings) -> Rule:
    """``scale``: "detached" (the usual form) or "attached"."""
    attached = choice(settings, "scale", ("detached", "attached")) == "attached"
    return Rule(at_nearest, straight_through, through_scale if attached else None)


METHOD = Method(
    "qat",
    rule=rule,
    information="gradient at RTN(w)",
    grid="absmax",
    source="Bengio et al., arXiv 1308.3432 (STE); absmax scale, detached unless said",
    settings={"scale": "detached"},
    any_format=True,
)
