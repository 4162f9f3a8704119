"""Gradients of the smoothed loss: the exact one, unbiased estimators, and the biased baselines that are often mistaken
for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .._arrays import is_exact, wide
from ..arguments import count
from ..formats.quantizer import Quantizer
from .chain import Partials, pull_back, variance_partials
from .exact import LIMIT, chance_up, law
from .losses import Loss, curvatures_of, has_curvature, slopes_of, values_of
from .sampling import mirrored, prepared, randomized_points, uniform_rows


def exact(loss: Loss, w, q: Quantizer | str, moving: bool = True, limit: int = LIMIT) -> np.ndarray:
    """Gradient of ``E[L(RR(w))]`` by enumeration; ``moving=False`` holds every lattice fixed (claim C13).

    With a moving lattice the loss must have ``gradient``. Along a fixed lattice only its values are used, except at
    weights that lie on a level.
    """
    q, w = prepared(w, q)
    if q.codebook.is_complex:
        raise ValueError(f"gradients are for real weights; {q} is complex: a weight is its pair (Re + Im, Re - Im)")
    found = law(w, q, limit)
    values = values_of(loss, found.points)
    shape = (len(found.probs), *found.branches[0].cell.lo.shape)
    slopes = None
    partials = []
    for k, b in enumerate(found.branches):
        cell = b.cell
        chosen = (
            found.probs * (found.branch == k).T
            if len(found.branches) == 2
            else np.broadcast_to(found.probs, (shape[1], shape[0]))
        )
        chance = chosen.T[:, :, None]
        p = chance_up(cell)
        free = (p > 0) & (p < 1)
        up_weight = found.up / np.where(free, p, p * 0 + 1) - ~found.up / np.where(free, 1 - p, p * 0 + 1)
        # d E / d p_up, from the same sum with each point's own factor p or 1-p divided out.
        by_p = (chance * up_weight * values[:, None, None]).sum(axis=0) * free
        if slopes is None and (moving or not free.all()):
            slopes = slopes_of(loss, found.points).reshape(shape)
        gap = np.where(free, cell.hi - cell.lo, 0 * p + 1)
        # In float64: a subnormal float32 gap has no finite float32 reciprocal.
        target = by_p / (gap if is_exact(gap) else gap.astype(np.float64))
        lo = hi = None
        if slopes is not None:
            inner = (chance * slopes).sum(axis=0)
            target = np.where(free, target, inner)
            at_hi = (chance * slopes * found.up).sum(axis=0)
            # d p_up / d lo = -(1 - p) / gap and d p_up / d hi = -p / gap; one division, as gaps may be subnormal.
            lo = np.where(free, inner - at_hi - target * (1 - p), 0 * p)
            hi = np.where(free, at_hi - target * p, 0 * p)
        prob = None
        if b.prob is not None:
            held = b.prob + (b.prob == 0)
            prob = (chance[:, :, 0] * values[:, None]).sum(axis=0)[:, None] / held
        partials.append(Partials(target, lo, hi, prob))
    if len(found.branches) == 2:
        _fill_impossible_branches(found, partials)
    return pull_back(q, w, found.branches, partials, moving)


def _fill_impossible_branches(found, partials: list[Partials]) -> None:
    # A lattice of probability 0 is not enumerated; there d prob / d w is 0 too, so any finite value will do.
    for b, part in zip(found.branches, partials, strict=True):
        assert part.prob is not None, "with two lattices each has a probability"
        part.prob = np.where(b.prob > 0, part.prob, 0 * part.prob)


_GROUP = 256


@dataclass(frozen=True)
class GradientEstimate:
    """A sampled gradient, its elementwise standard error, and the number of draws of RR(w)."""

    value: np.ndarray
    standard_error: np.ndarray
    samples: int
    method: str


def _one_lattice(q: Quantizer, method: str) -> Quantizer:
    if q.scale.is_drawn or q.codebook.is_complex:
        raise ValueError(f"method {method!r} needs one lattice per block and real weights; {q} has neither")
    return q


def _single_cell(q: Quantizer, w: np.ndarray, method: str):
    cell = _one_lattice(q, method).branches(w)[0].cell
    return tuple(part.reshape(w.shape) for part in (cell.target, cell.lo, cell.hi))


def conditional_difference(loss: Loss, q: Quantizer, w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``[L(q: i→hi) - L(q: i→lo)] / (hi - lo)`` for every coordinate of every draw (claim C13); 2d loss calls a draw.

    Unbiased for the gradient on a fixed lattice. 0 at weights on a level, where the derivative is one-sided.
    """
    _, lo, hi = _single_cell(q, w, "conditional_difference")
    flat = points.reshape(len(points), -1)
    out = np.zeros(flat.shape)
    for i in np.flatnonzero((hi > lo).ravel()):
        values = []
        for level in (hi, lo):
            moved = flat.copy()
            moved[:, i] = level.ravel()[i]
            values.append(values_of(loss, moved.reshape(points.shape)))
        out[:, i] = (values[0] - values[1]) / (hi.ravel()[i] - lo.ravel()[i])
    return out.reshape(points.shape)


def score_function(loss: Loss, q: Quantizer, w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``(L(q) - b) ∂ log P(q) / ∂w``, the mean of the other draws as baseline ``b``; unbiased on a fixed lattice."""
    m, lo, hi = _single_cell(q, w, "score_function")
    free = hi > lo
    values = values_of(loss, points).astype(float)
    n = len(values)
    baseline = (values.sum() - values) / (n - 1) if n > 1 else 0 * values
    up = points == hi
    distance = np.where(free, np.where(up, m - lo, hi - m), 1)
    with np.errstate(over="ignore"):  # A subnormal distance has no finite reciprocal.
        score = np.where(up, 1, -1) / distance * free
    return (values - baseline).reshape(-1, *[1] * w.ndim) * score


def straight_through(loss: Loss, q: Quantizer, w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``∇L(RR(w))``, pathwise with RR treated as the identity ("RAT"). On quadratics its mean is ``∇L(w)``: no
    smoothing signal at all (claim C14)."""
    return slopes_of(loss, points)


def detached_noise(loss: Loss, q: Quantizer, w: np.ndarray, points: np.ndarray) -> np.ndarray:
    """``∇L(w + ε)`` with noise of RR's variance that does not depend on ``w``; biased as :func:`straight_through` is.

    The noise is RR's own error, read as additive noise.
    """
    return slopes_of(loss, wide(w) + (points - wide(w)))


def corrected(loss: Loss, q: Quantizer, w: np.ndarray, points: np.ndarray, moving: bool = False) -> np.ndarray:
    """``∇L(q) + ½ h(q) (lo + hi - 2w)``: straight-through at ``q = RR(w)``, and the gradient of the penalty with the
    curvature ``h`` there (claim C22).

    Unbiased, on a fixed and on a ``moving`` lattice, for losses that are quadratic in each single weight. One gradient
    and one curvature a draw; ``loss`` needs ``gradient`` and ``curvature_at``.
    """
    branches = _one_lattice(q, "corrected").branches(w)
    shape = (len(points), *branches[0].cell.lo.shape)
    part = variance_partials(branches[0], curvatures_of(loss, points).reshape(shape) / 2)
    part.target = part.target + slopes_of(loss, points).reshape(shape)
    return pull_back(q, w, branches, [part], moving)


PER_SAMPLE: dict[str, Callable] = {
    "conditional_difference": conditional_difference,
    "score_function": score_function,
    "corrected": corrected,
    "straight_through": straight_through,
    "detached_noise": detached_noise,
}


def sampled(
    method: str,
    loss: Loss,
    w,
    q: Quantizer | str,
    samples: int = 1024,
    seed: int = 0,
    moving: bool = False,
    pairs: bool = False,
) -> GradientEstimate:
    """Mean of a per-draw estimator over ``samples`` draws, with its standard error.

    ``moving``: for "corrected", follow the lattice; the other estimators know none that moves. ``pairs``: antithetic
    ones, of the uniforms ``u`` and ``1 - u``; ``samples`` counts both, the error is that over pairs.
    """
    if method not in PER_SAMPLE:
        raise ValueError(f"unknown estimator {method!r}; valid: {', '.join(PER_SAMPLE)}")
    samples = count("samples", samples)
    if samples < (4 if pairs else 2):
        raise ValueError(f"samples={samples} is too few for a standard error")
    if pairs and samples % 2:
        raise ValueError(f"samples={samples} must be even for antithetic pairs")
    q, w = prepared(w, q)
    rule = partial(corrected, moving=moving) if method == "corrected" else PER_SAMPLE[method]
    rows = samples // 2 if pairs else samples
    mean: Any = 0.0
    scatter: Any = 0.0
    n = 0
    # Groups of a fixed size: the leave-one-out baseline of the score function must not depend on what fits in memory.
    group = -(-rows // max(1, rows // _GROUP))
    for u in uniform_rows(q, w, rows, seed, "smoothing/gradient", group):
        each = _floats(rule(loss, q, w, randomized_points(q, w, u)))
        if pairs:
            each = (each + _floats(rule(loss, q, w, randomized_points(q, w, mirrored(u))))) / 2
        # Chan's update: sums of squares would cancel where the spread is small beside the mean.
        middle, m = each.mean(axis=0), len(each)
        shift = middle - mean
        scatter = scatter + (np.abs(each - middle) ** 2).sum(axis=0) + np.abs(shift) ** 2 * (n * m / (n + m))
        mean, n = mean + shift * (m / (n + m)), n + m
    return GradientEstimate(mean, np.sqrt(scatter / (n - 1) / n), samples, method)


def _floats(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) if x.dtype == object else x


def rounded_to_nearest(loss: Loss, w, q: Quantizer | str) -> np.ndarray:
    """The straight-through gradient of QAT, ``∇L(cast(w))``."""
    q, w = prepared(w, q)
    return slopes_of(loss, wide(q.cast(w))[None])[0]


def cage(loss: Loss, w, q: Quantizer | str, strength: float = 10) -> np.ndarray:
    """CAGE (arXiv 2510.18784): ``∇L(cast(w)) + strength (w - cast(w))``, the coupled form; its authors take 10."""
    q, w = prepared(w, q)
    return rounded_to_nearest(loss, w, q) + strength * (wide(w) - wide(q.cast(w)))


@dataclass(frozen=True)
class EstimatorReport:
    """Measured quality of one estimator against the exact gradient.

    ``bias``: mean minus truth, per weight; ``bias_standard_error``; ``deviation``: standard deviation of one draw.
    ``z``: largest |bias| / standard error. ``evaluations``: loss or gradient calls per draw.
    """

    method: str
    truth: str
    bias: np.ndarray
    bias_standard_error: np.ndarray
    deviation: np.ndarray
    z: float
    evaluations: int


def compare(loss: Loss, w, q: Quantizer | str, samples: int = 4096, seed: int = 0) -> list[EstimatorReport]:
    """Bias and spread of every per-draw estimator, on the same draws, against the exact fixed-lattice gradient and,
    where the loss has a gradient, the deterministic baselines (STE on RTN, CAGE) too; "corrected" where it has a
    curvature.

    Weights on a level are left out (bias 0): there the fixed-lattice derivative is one-sided.
    """
    q, w = prepared(w, q)
    truth = exact(loss, w, q, moving=False)
    free = q.variance(w) > 0
    reports = []
    for method in PER_SAMPLE:
        if method == "corrected" and not has_curvature(loss):
            continue
        found = sampled(method, loss, w, q, samples, seed)
        bias = (found.value - truth) * free
        error = np.maximum(found.standard_error, 1e-300)
        negligible = np.abs(bias) <= 1e-12 * (1 + np.abs(truth))
        z = float(np.max(np.where(negligible, 0.0, np.abs(bias) / error)))
        cost = 2 * int(np.count_nonzero(q.variance(w))) if method == "conditional_difference" else 1
        reports.append(
            EstimatorReport(
                method,
                "exact, fixed lattice",
                bias,
                found.standard_error,
                found.standard_error * math.sqrt(samples),
                z,
                cost,
            )
        )
    for method, rule in (("rtn_straight_through", rounded_to_nearest), ("cage", cage)):
        bias = (rule(loss, w, q) - truth) * free
        zero = np.zeros_like(bias)
        reports.append(
            EstimatorReport(
                method, "exact, fixed lattice", bias, zero, zero, math.inf if np.abs(bias).max() > 1e-12 else 0.0, 1
            )
        )
    return reports
