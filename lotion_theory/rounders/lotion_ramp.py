"""LOTION as a rounding scheme that may leave the cell of W: its penalty is ramped up while descending (homotopy)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream
from .._arrays import Array, namespace
from . import coordinate_descent
from ._adam import Adam, check, cosine, rounding_scale
from .base import Case, Rounder
from .conditional import settle
from .lotion_cell import smoothed_slope


def follow(
    case: Case, steps: int = 1000, lr: float = 0.05, end: float = 1.0, power: float = 1.0, ramp: bool = True
) -> Array:
    """Adam from W on ``L(w) + λ ½ Σ H_jj (hi - w)(w - lo)``, lo and hi being the levels around the moving w; (rows, n).

    ``λ = end · (share of steps done)^power``, or ``end`` throughout where not ``ramp``. At λ = 1 the objective is the
    smoothed loss, whose strict local minima are lattice points (claim C11); for small λ it is convex but for kinks of
    size λ at the levels, and W is its minimum at λ = 0. ``lr``: typical step of a weight, in mean gaps of its levels,
    decaying to 0 by a cosine so that w comes to rest in the kinks. w stays between the extreme levels.
    """
    low, high = case.grid.ends
    unit = case.grid.gap
    scale = rounding_scale(case, "mean gap", lambda part: part.grid.gap)
    adam, clip = Adam(), namespace(case.weights).clip
    w = clip(case.weights, low, high)
    for t in range(steps):
        weight = end * ((t + 1) / steps) ** power if ramp else end
        slope = smoothed_slope(case, w, *case.grid.bracket(w), weight)
        w = clip(w - lr * cosine(t / steps) * unit * adam(slope * unit / scale), low, high)
    return w


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("lr", settings["lr"], settings["lr"] > 0, "a positive number")
    check("end", settings["end"], settings["end"] >= 0, "at least 0")
    check("power", settings["power"], settings["power"] > 0, "a positive number")
    w = follow(case, **{key: value for key, value in settings.items() if key != "polish"})
    points = settle(case, w, *case.grid.bracket(w))
    return coordinate_descent.descend(case, points) if settings["polish"] else points


# Adam rather than gradient descent with steps proportional to 1 / H_jj: on rotated spectra i^-1.1 the latter is stable
# only for rates below 2 / λ_max(C), C the correlation matrix of H, and with as many steps ends 20 % higher.
ROUNDER = Rounder(
    name="lotion_ramp",
    run=_run,
    information="H",
    grid="fixed",
    source="LOTION, arXiv 2510.08757, its penalty ramped from 0 to 1; ramp=False is LOTION itself",
    evaluations="steps",
    settings={"steps": 1000, "lr": 0.05, "end": 1.0, "power": 1.0, "ramp": True, "polish": False},
    tuning={"lr": (0.02, 0.05, 0.1), "power": (0.5, 1.0, 2.0), "end": (0.7, 1.0)},
)
