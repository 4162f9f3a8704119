"""CAGE: the STE gradient plus a pull ``λ (w - RTN(w))`` toward the grid, late in training."""

from ..arguments import number
from .rule import Method, Place, Rule, at_nearest, at_weight, check_moment, choice, ramped, stepped, straight_through

FORMS = ("decoupled", "coupled")
POINTS = {"nearest": at_nearest, "weight": at_weight}
RAMPS = ("linear", "constant")


def with_pull(p: Place, g, h, a):
    """``g + λ e``, ``e = w - near``: the optimizer sees the pull."""
    return g + a[0] * (p.w - p.near)


def pull(p: Place, h, a):
    """``λ e``, beside the optimizer, as decoupled weight decay is."""
    return a[0] * (p.w - p.near)


def rule(settings) -> Rule:
    """``weight``: λ. ``silent``: share of training without the pull (or steps, where they are counted). After that the
    pull grows linearly up to the end, or is constant (``ramp``). ``form``: "decoupled" or "coupled" (the optimizer
    rescales the pull, too). ``point``: loss gradients at the "nearest" levels (STE) or at the "weight"."""
    coupled = choice(settings, "form", FORMS) == "coupled"
    linear = choice(settings, "ramp", RAMPS) == "linear"
    weight, silent = number(settings["weight"], "weight", 0.0), settings["silent"]
    check_moment(settings, "silent")
    if silent == 1.0 and isinstance(silent, float):
        raise ValueError(f"silent = {silent!r}; must lie in [0, 1)")
    return Rule(
        POINTS[choice(settings, "point", tuple(POINTS))],
        with_pull if coupled else straight_through,
        decay=None if coupled else pull,
        parameters=ramped(weight, silent, 1.0, "silent") if linear else stepped(weight, silent, "silent"),
        linear=not coupled,
    )


METHOD = Method(
    "cage",
    rule=rule,
    information="gradient at RTN(w)",
    grid="absmax",
    source="Tabesh et al., arXiv 2510.18784",
    settings={"weight": 10.0, "silent": 0.8, "ramp": "linear", "form": "decoupled", "point": "nearest"},
    tuning={"weight": (1.0, 10.0, 100.0)},
    any_format=True,
)
