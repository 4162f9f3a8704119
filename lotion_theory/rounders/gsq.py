"""GSQ: levels near those of GPTQ, chosen by Lion on a Gumbel-softmax relaxation that hardens as it goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import Stream
from .._arrays import Array, to_numpy
from ._adam import check, cosine
from .base import Case, Rounder, as_given
from .conditional import column_order
from .gptq import compensated_rounding

STARTS = ("gptq", "rtn")
TEMPERATURES, SCALES = (2.0, 0.05), (100.0, 500.0)
"""Of the softmax, and the factor on the logits: first and last, linear in between, as released."""
BETAS, LEAST_RATE = (0.9, 0.95), 0.1
"""Lion's, and the share of the learning rate that its cosine ends at."""
SPREAD, STRENGTH = 0.01, 6.0
"""The logits start at ``SPREAD`` times (standard normal + ``STRENGTH`` times minus half the squared shift)."""
_TINY = 1e-8


def soft_levels(
    logits: np.ndarray, values: np.ndarray, noise: np.ndarray, temperature: float, scale: float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean level (rows, n) under a softmax of ``(scale logits + noise)/temperature``, and its shares; all others
    (rows, n, candidates). Logits of -inf are no candidates."""
    z = (logits * scale + noise) / temperature
    shares = np.exp(z - z.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return (shares * values).sum(axis=-1), shares


def through_softmax(slope: np.ndarray, values: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Derivative in what the softmax is taken of, for a loss of ``slope`` (rows, n) in the mean level."""
    pull = slope[..., None] * values
    return shares * (pull - (shares * pull).sum(axis=-1, keepdims=True))


def learn(case: Case, start: np.ndarray, settings: Mapping[str, Any], stream: Stream) -> np.ndarray:
    """The levels (rows, n) with the largest logits after ``settings["steps"]`` of Lion on the loss at the soft levels,
    from the lattice points ``start``; candidates are the levels up to ``settings["reach"]`` numbers away."""
    shifts = np.arange(-settings["reach"], settings["reach"] + 1)
    index, _ = case.grid.index(start)
    near = index[..., None] + shifts
    valid = (near >= 0) & (near < len(case.grid.units))
    values = np.take_along_axis(case.grid.levels, np.clip(near, 0, len(case.grid.units) - 1), axis=-1)
    first = np.where(valid, -(shifts**2) / 2, 0.0)
    first = first - first.sum(axis=-1, keepdims=True) / valid.sum(axis=-1, keepdims=True)
    random = stream.numpy_generator(0)
    logits = SPREAD * (random.standard_normal(first.shape) + STRENGTH * first)
    mean, steps = np.zeros_like(logits), settings["steps"]
    for t in range(steps):
        done = t / max(steps - 1, 1)
        temperature, scale = (a + (b - a) * done for a, b in (TEMPERATURES, SCALES))
        noise = -np.log(-np.log(random.random(first.shape) + _TINY) + _TINY)
        soft, shares = soft_levels(np.where(valid, logits, -np.inf), values, noise, temperature, scale)
        slope = (soft - case.weights) @ case.hessian
        gradient = through_softmax(slope, values, shares) * (scale / temperature)
        rate = settings["lr"] * (LEAST_RATE + (1 - LEAST_RATE) * cosine(t / steps))
        direction = np.sign(BETAS[0] * mean + (1 - BETAS[0]) * gradient)
        logits = logits * (1 - rate * settings["decay"]) - rate * direction
        mean = BETAS[1] * mean + (1 - BETAS[1]) * gradient
    best = np.where(valid, logits, -np.inf).argmax(axis=-1)
    return np.take_along_axis(values, best[..., None], axis=-1)[..., 0]


def _run(case: Case, settings: Mapping[str, Any], stream: Stream) -> Array:
    for name in ("steps", "decay"):
        check(name, settings[name], settings[name] >= 0, "at least 0")
    check("reach", settings["reach"], settings["reach"] >= 1, "at least 1")
    check("lr", settings["lr"], settings["lr"] > 0, "a positive number")
    if settings["start"] not in STARTS:
        raise ValueError(f"unknown start {settings['start']!r}; valid: {', '.join(STARTS)}")
    given, case = case, Case(to_numpy(case.hessian), to_numpy(case.weights), case.grid.carried(to_numpy))
    if settings["start"] == "rtn":
        start = case.grid.nearest(case.weights)
    else:
        start = compensated_rounding(case, column_order(case, "curvature", stream), settings["damping"])
    return as_given(learn(case, start, settings, stream), given)


ROUNDER = Rounder(
    name="gsq",
    run=_run,
    information="H",
    grid="fixed",
    source="GSQ, arXiv 2604.18556, as released (GumbelQuantizerInt); scales stay as they are",
    evaluations="steps, after GPTQ",
    settings={"steps": 640, "lr": 1e-4, "decay": 1.0, "reach": 2, "start": "gptq", "damping": 0.01},
    tuning={"lr": (3e-5, 1e-4, 3e-4, 1e-3), "start": STARTS},
    by_rows=False,
)
