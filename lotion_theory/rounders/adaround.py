"""AdaRound: soft up/down decisions learned by Adam under a regulariser that drives them to 0 or 1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream, kernels
from .._arrays import Array, namespace
from ..functions import log, sigmoid
from ._adam import Adam, cell_gap, check, rounding_scale
from .base import Case, Rounder

REGULARISERS = ("adaround", "lotion")
_LOW, _HIGH = -0.1, 1.1  # γ and ζ, the range to which the sigmoid is stretched before it is cut off at 0 and 1


def soft_decision(v: Array) -> tuple[Array, Array]:
    """The rectified sigmoid ``h(v) = clip(σ(v)(ζ - γ) + γ, 0, 1)`` (eq. 23) and its derivative, 0 where it is cut."""
    s = sigmoid(v)
    stretched = s * (_HIGH - _LOW) + _LOW
    inside = (stretched > 0) & (stretched < 1)
    return stretched.clip(0, 1), (_HIGH - _LOW) * s * (1 - s) * inside


def decision_start(h: Array) -> Array:
    """The v with ``h(v) = h``, for h in [0, 1]: ``-log((ζ - γ) / (h - γ) - 1)``."""
    return -log((_HIGH - _LOW) / (h - _LOW) - 1)


def regulariser(h: Array, beta: float) -> tuple[Array, Array]:
    """``ψ(h) = 1 - |2h - 1|^β`` elementwise (eq. 24) and its derivative in h, for ``beta > 1``."""
    away = abs(2 * h - 1)
    return 1 - away**beta, -2 * beta * namespace(h).sign(2 * h - 1) * away ** (beta - 1)


def learn(
    case: Case,
    steps: int = 2000,
    lr: float = 0.03,
    weight: float = 1.0,
    kind: str = "adaround",
    warm: float = 0.2,
    betas: tuple[float, float] = (20.0, 2.0),
) -> Array:
    """The logits v (rows, n) after ``steps`` of Adam on ``L(lo + (hi - lo) h(v)) / c + weight Σ ψ(h)`` (eq. 25).

    ``c`` is the mean of ``H_jj (hi - lo)²`` over all weights, which makes ``weight`` (the paper's λ) comparable between
    cases. The regulariser is off for the first ``warm`` share of the steps; then β goes linearly through ``betas``.
    With ``kind="lotion"`` it is ``½ Σ H_jj (hi - lo)² h(1-h) / c`` instead: LOTION's penalty where ``weight`` is 1.
    """
    lo, hi = case.grid.bracket(case.weights)
    gap = hi - lo
    scale = rounding_scale(case, "cell", cell_gap)
    v = decision_start(kernels.prob_up(namespace(lo).clip(case.weights, lo, hi), lo, hi))
    adam = Adam()
    for t in range(steps):
        h, dh = soft_decision(v)
        slope = gap * ((lo + gap * h - case.weights) @ case.hessian) / scale
        progress = (t / steps - warm) / (1 - warm)
        if progress >= 0 and kind == "lotion":
            slope += weight / 2 * case.curvature * gap**2 / scale * (1 - 2 * h)
        elif progress >= 0:
            slope += weight * regulariser(h, betas[0] + (betas[1] - betas[0]) * progress)[1]
        v = v - lr * adam(slope * dh)
    return v


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    kind = settings["regulariser"]
    if kind not in REGULARISERS:
        raise ValueError(f"unknown regulariser {kind!r}; valid: {', '.join(REGULARISERS)}")
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("lr", settings["lr"], settings["lr"] > 0, "a positive number")
    check("weight", settings["weight"], settings["weight"] >= 0, "at least 0")
    lo, hi = case.grid.bracket(case.weights)
    up = learn(case, settings["steps"], settings["lr"], settings["weight"], kind) >= 0
    return namespace(lo).where(up, hi, lo)


# The paper takes 10000 steps and λ = 0.01 with the loss as it comes. In units of c, λ below 0.1 leaves decisions
# undecided at the end, and λ from 0.3 to 10 give losses within 4 % of each other.
ROUNDER = Rounder(
    name="adaround",
    run=_run,
    information="H",
    grid="fixed",
    source="AdaRound, arXiv 2004.10568, eqs. 23-25",
    evaluations="steps",
    settings={"steps": 2000, "lr": 0.03, "weight": 1.0, "regulariser": "adaround"},
    tuning={"lr": (0.01, 0.03, 0.1), "weight": (0.01, 0.1, 0.3, 1.0, 3.0)},
)
