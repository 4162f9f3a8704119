"""DiscQuant: rounding as discrepancy minimisation, to a vertex of the cell along directions that L does not see."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import linprog

from .. import Stream, kernels
from .._arrays import Array, alike, dtype_name, namespace, to_numpy
from ._adam import Adam, cell_gap, check, cosine, rounding_scale
from .base import Case, Rounder

MODES = ("descent", "lp")
STARTS = ("random", "weights")
_WARM_UP = 1 / 8  # share of the steps: 128 of the published 1024


def positions(case: Case) -> Array:
    """``y``: where in its cell each weight of W lies, from 0 at ``lo`` to 1 at ``hi``; 0 on a level; (rows, n)."""
    lo, hi = case.grid.bracket(case.weights)
    return kernels.prob_up(namespace(lo).clip(case.weights, lo, hi), lo, hi)


def descent(case: Case, x: Array, rho: float = 0.5, clip: float = 0.5, lr: float = 0.05, steps: int = 1024) -> Array:
    """Positions (rows, n) after ``steps`` from ``x``, each of Adam along ``-(2y - 1) + clip(ρ ∇_x L / g, ±clip)``, kept
    in [0, 1].

    g is the root mean square of a row's ``∇_x L`` at the nearest rounding, in place of the published scale, which suits
    language models. The rate ``lr`` rises linearly over the first eighth and then decays by a cosine. Where the clip
    does not act, this minimises ``ρ L / g - <2y - 1, x>``, which is convex: then the start does not matter.
    """
    lo, hi = case.grid.bracket(case.weights)
    gap, y = hi - lo, positions(case)
    nearest = gap * ((case.grid.nearest(case.weights) - case.weights) @ case.hessian)
    xp = namespace(nearest)
    size = xp.mean(nearest**2, axis=1, keepdims=True) ** 0.5
    rate = rho / xp.where(size > 0, size, 1 + 0 * size)
    adam, rising = Adam(), max(1, round(_WARM_UP * steps))
    for t in range(steps):
        slope = gap * ((lo + gap * x - case.weights) @ case.hessian)
        factor = (t + 1) / rising if t < rising else cosine((t - rising) / (steps - rising))
        x = (x - lr * factor * adam((rate * slope).clip(-clip, clip) - (2 * y - 1))).clip(0, 1)
    return x


def vertices(case: Case, share: float = 1.0) -> Array:
    """Per row a vertex of ``{x in [0,1]^n: A x = A y}`` with the largest ``<2y - 1, x>``; (rows, n).

    ``AᵀA`` is the Hessian in x, reduced to its ``share · n`` largest eigenvalues; directions of H whose eigenvalue is
    within rounding of zero are always left out. With r of them, at most r entries of a row are neither 0 nor 1, and L
    is unchanged as far as these directions see it (the LP form of the paper's theorem). Raises RuntimeError where the
    solver fails.
    """
    gap, y = (to_numpy(part).astype(np.float64) for part in (cell_gap(case), positions(case)))
    scale = rounding_scale(case, "cell", cell_gap)
    values, vectors = case.once("spectrum", lambda: np.linalg.eigh(to_numpy(case.hessian).astype(np.float64) / scale))
    rank = int((values > len(values) * np.finfo(float).eps * values[-1]).sum())
    kept = max(len(values) - min(rank, round(share * len(values))), 0)
    factor = np.sqrt(np.maximum(values[kept:], 0))[:, None] * vectors[:, kept:].T
    found = []
    for row, place in zip(gap, y, strict=True):
        matrix = factor * row
        result = linprog(1 - 2 * place, A_eq=matrix, b_eq=matrix @ place, bounds=(0, 1), method="highs-ds")
        if result.x is None:
            raise RuntimeError(f"the linear program was not solved: {result.message}")
        found.append(result.x)
    return alike(np.array(found).astype(dtype_name(case.weights)), case.weights)


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    for name, valid in (("mode", MODES), ("start", STARTS)):
        if settings[name] not in valid:
            raise ValueError(f"unknown {name} {settings[name]!r}; valid: {', '.join(valid)}")
    for name in ("rho", "clip", "lr"):
        check(name, settings[name], settings[name] > 0, "a positive number")
    check("steps", settings["steps"], settings["steps"] >= 0, "at least 0")
    check("share", settings["share"], 0 < settings["share"] <= 1, "more than 0 and at most 1")
    lo, hi = case.grid.bracket(case.weights)
    if settings["mode"] == "lp":
        x = vertices(case, settings["share"])
    else:
        random = settings["start"] == "random"
        x = case.uniforms(stream) if random else positions(case)
        x = descent(case, x, *(settings[name] for name in ("rho", "clip", "lr", "steps")))
    return namespace(lo).where(x > 0.5, hi, lo)


# Published for language models: rho 200, clip 0.5 to 1, lr 0.05 to 0.1, 1024 steps. In the unit used here rho 200 pins
# x to y, and the result is nearly RTN; rho 0.2 to 1 is best on quadratics with spectrum i^-1.1. ``share`` belongs to
# the LP: with all directions of a full-rank H, x = y, so only the leading ones are kept.
ROUNDER = Rounder(
    name="discquant",
    run=_run,
    information="H",
    grid="fixed",
    source="DiscQuant, arXiv 2501.06417; mode='lp' is the linear program of its theory",
    evaluations="steps; for lp 1 eigendecomposition and a linear program per row",
    settings={
        "mode": "descent", "rho": 0.5, "clip": 0.5, "lr": 0.05, "steps": 1024, "start": "random", "share": 0.1,
    },
    tuning={"rho": (0.1, 0.2, 0.5, 1.0, 10.0, 200.0), "clip": (0.2, 0.5, 1.0)},
)  # fmt: skip
