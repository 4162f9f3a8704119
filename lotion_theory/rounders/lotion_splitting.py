"""LOTION as a rounding scheme by operator splitting: its ramp, followed with one factorization instead of Adam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .. import Stream
from .._arrays import Array, astype, device, dtype_name, is_torch, namespace
from . import coordinate_descent
from ._adam import check
from .base import Case, Rounder
from .factor import damped, factored
from .places import Between

ROOM = 2**17
"""Weights whose arrays fit a CPU's cache: rows are taken in runs of about so many weights."""


def follow(
    case: Case,
    steps: int = 200,
    rho: float = 1.01,
    power: float = 2.0,
    damping: float = 0.01,
    relaxation: float = 1.8,
) -> Array:
    """The end (rows, n) of ``steps`` of splitting on ``½ (w - W)ᵀH(w - W) + λ ½ Σ H_jj (hi - w)(w - lo)``.

    lo and hi are the levels around the moving w, and ``λ = (share of steps done)^power``. With D the diagonal of H,
    damped as :func:`~lotion_theory.rounders.factor.damped` says, and z = W, u = 0 at first, each step solves

    - ``x = (H + ρD)⁻¹ (H W + ρD (z - u))``, by one matrix product for all rows,
    - ``z = argmin λ ½ D (hi - z)(z - lo) + ρ/2 D (z - v)²`` for ``v = x + u``: with f the position of v in its cell,
      the one at ``clip((2ρf - λ) / (2(ρ - λ)), 0, 1)``, exactly, since ρ > λ makes the objective convex,

    and sets ``u = v - z`` (alternating directions; Boyd et al. 2011, section 3.1.1). ``relaxation`` in (0, 2) takes x
    with that weight and the former z with the rest. Of a diagonal H the nearest level is a fixed point.

    The factor is computed in float64, steps run in the type of the weights. Raises ValueError where H is not positive
    definite even with ``damping``.
    """
    matrix = case.once(("splitting", rho, damping), lambda: resolvent(case, rho, damping))
    out, n = namespace(case.weights).empty_like(case.weights), len(case.hessian)
    on_chip = is_torch(case.weights) and case.weights.device.type != "cpu"
    start = 0
    for part in case.parts(None if on_chip else max(32, ROOM // n)):
        stop = start + len(part.weights)
        out[start:stop] = _followed(part, matrix, steps, rho, power, relaxation)
        start = stop
    return out


def _followed(case: Case, matrix: Array, steps: int, rho: float, power: float, relaxation: float) -> Array:
    """All steps for rows that fit the cache."""
    between, weights = Between(case.grid), case.weights
    z, u = weights, 0 * weights
    for t in range(steps):
        weight = ((t + 1) / steps) ** power
        gap = z - u
        gap -= weights
        v = gap @ matrix
        v += weights
        if relaxation != 1:
            v *= relaxation
            v += (1 - relaxation) * z
        v += u
        z = between.moved(v, rho / (rho - weight), weight / (2 * (rho - weight)))
        u = v
        u -= z
    return z


def resolvent(case: Case, rho: float, damping: float) -> Array:
    """``ρD (H + ρD)⁻¹`` (n, n), with which ``x = W + (z - u - W) ρD (H + ρD)⁻¹`` for rows."""
    hessian = damped(case, damping)
    xp = namespace(hessian)
    # With D = 1, so that columns of very different size are solved equally well.
    root = (rho * xp.linalg.diagonal(hessian)) ** 0.5
    identity = xp.eye(len(root), dtype=hessian.dtype, device=device(hessian))
    whole = hessian / root / root[:, None] + identity
    inverse = xp.linalg.inv(factored(lambda: xp.linalg.cholesky(whole), damping))
    return astype(root[:, None] * (inverse.T @ inverse) / root, dtype_name(case.weights))


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    rho, relaxation = settings["rho"], settings["relaxation"]
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("rho", rho, rho > 1, "more than 1, the last λ")
    check("power", settings["power"], settings["power"] > 0, "a positive number")
    check("relaxation", relaxation, 0 < relaxation < 2, "a number between 0 and 2")
    check("sweeps", settings["sweeps"], settings["sweeps"] >= 0, "at least 0")
    end = follow(case, settings["steps"], rho, settings["power"], settings["damping"], relaxation)
    points = case.grid.nearest(end)
    return coordinate_descent.descend(case, points, settings["sweeps"]) if settings["sweeps"] else points


ROUNDER = Rounder(
    name="lotion_splitting",
    run=_run,
    information="H",
    grid="fixed",
    source="LOTION, arXiv 2510.08757, its penalty ramped from 0 to 1, by the alternating direction method",
    evaluations="steps products and 3/2 per sweep; 1 Cholesky, 1 inverse",
    settings={"steps": 200, "rho": 1.01, "power": 2.0, "damping": 0.01, "relaxation": 1.8, "sweeps": 4},
    tuning={
        "rho": (1.01, 1.1, 1.5), "power": (1.0, 2.0, 3.0), "damping": (0.001, 0.01, 0.1),
        "relaxation": (1.0, 1.5, 1.8, 1.95),
    },
)  # fmt: skip
