"""CAGE: the STE gradient plus a pull ``λ (w - RTN(w))`` toward the grid, late in training."""

from functools import partial

import numpy as np

from ...descent.rule import Place, Rule, Trainer, at_nearest, at_weight, ramped, straight_through

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
    """``weight``: λ. ``silent``: share of training without the pull, which then grows linearly up to the end, or is
    constant (``ramp``). ``form``: "decoupled" or "coupled" (the optimizer rescales the pull, too). ``point``: loss
    gradients at the "nearest" levels (STE) or at the "weight"."""
    for name, valid in (("form", FORMS), ("point", tuple(POINTS)), ("ramp", RAMPS)):
        if settings[name] not in valid:
            raise ValueError(f"{name} = {settings[name]!r}; valid: {', '.join(valid)}")
    if not 0 <= settings["silent"] < 1:
        raise ValueError(f"silent = {settings['silent']!r}; must lie in [0, 1)")
    coupled = settings["form"] == "coupled"
    linear, silent = settings["ramp"] == "linear", settings["silent"]
    return Rule(
        POINTS[settings["point"]],
        with_pull if coupled else straight_through,
        decay=None if coupled else pull,
        parameters=ramped(settings["weight"], silent, 1.0) if linear else stepped(settings["weight"], silent),
    )


def stepped(weight: float, start: float):
    """Rows of parameters: 0 up to progress ``start``, then ``weight``."""
    return partial(_step, weight, start)


def _step(weight: float, start: float, progress: np.ndarray) -> np.ndarray:
    return weight * (progress >= start)[:, None]


TRAINER = Trainer(
    "cage",
    rule=rule,
    information="gradient at RTN(w)",
    grid="absmax",
    source="Tabesh et al., arXiv 2510.18784",
    settings={"weight": 10.0, "silent": 0.8, "ramp": "linear", "form": "decoupled", "point": "nearest"},
    tuning={"weight": (1.0, 10.0, 100.0)},
)
