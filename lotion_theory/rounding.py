"""Deterministic rounding rules beside round-to-nearest: directed, and by conditional expectation."""

from __future__ import annotations

import numpy as np

from . import kernels
from ._arrays import Array, as_array, namespace, to_numpy, wide
from .formats.quantizer import Quantizer
from .smoothing.losses import Loss, Quadratic, values_of

DIRECTIONS = ("down", "up", "toward_zero", "away_from_zero")


def directed(w: Array, q: Quantizer | str, direction: str) -> Array:
    """Round every weight to one side: ``down`` (floor), ``up`` (ceiling), ``toward_zero`` or ``away_from_zero``.

    Weights on a level stay. Raises ValueError for an unknown direction, and for formats without a single bracket.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}; valid: {', '.join(DIRECTIONS)}")
    lo, hi = Quantizer.parse(q).bracket(w)
    if direction == "down":
        return lo
    if direction == "up":
        return hi
    where = namespace(lo).where
    near, far = where(abs(lo) <= abs(hi), lo, hi), where(abs(lo) <= abs(hi), hi, lo)
    return near if direction == "toward_zero" else far


def conditional_expectation(
    loss: Loss, w: np.ndarray, q: Quantizer | str, order: np.ndarray | None = None
) -> np.ndarray:
    """Round coordinate by coordinate, each to the end with the lower conditional expectation of ``L`` (claim C12).

    The method of conditional expectations: with the lattice of ``w`` held fixed, ``E[L | coordinates fixed so far]``
    never increases, so the result ``x`` has ``L(x) <= E[L(RR(w))]``. Round-to-nearest has no such guarantee. Ties go to
    ``hi``.

    For a :class:`Quadratic` each step costs one Hessian column, O(d²) in all. Any other batched loss is averaged over
    all completions, 2^k points for k free weights (k <= 20). ``order``: a permutation of the flat indices, C order by
    default. Raises ValueError for an SR scale or a complex codebook, which have no single bracket, and for a wrong
    ``order``.
    """
    q = Quantizer.parse(q)
    w = to_numpy(as_array(w))
    # 16-bit weights are handled in float64; their levels, and so the result, are values of their own type.
    lo, hi = (wide(part).ravel() for part in q.bracket(w))
    order = np.arange(w.size) if order is None else np.asarray(order)
    if sorted(order.tolist()) != list(range(w.size)):
        raise ValueError(f"order must be a permutation of 0 ... {w.size - 1}")
    mean = np.clip(wide(w).ravel(), lo, hi)
    free = [int(i) for i in order if hi[i] > lo[i]]
    if isinstance(loss, Quadratic):
        rounded = _quadratic_steps(loss, w.shape, mean.copy(), lo, hi, free)
    else:
        rounded = _enumerated_steps(loss, w.shape, mean.copy(), lo, hi, free)
    return rounded.reshape(w.shape).astype(w.dtype)


def _quadratic_steps(loss: Quadratic, shape, mean, lo, hi, free) -> np.ndarray:
    slope = loss.gradient(mean.reshape(1, *shape)).ravel()
    for i in free:
        # E[L] is linear in each mean: the end values differ by slope (hi - lo) + ½ H_ii ((hi-m)² - (lo-m)²).
        half = loss.curvature.ravel()[i] / 2
        rise = slope[i] * (hi[i] - lo[i]) + half * ((hi[i] - mean[i]) ** 2 - (lo[i] - mean[i]) ** 2)
        end = hi[i] if rise <= 0 else lo[i]
        step = np.zeros_like(mean)
        step[i] = end - mean[i]
        slope = slope + loss.product(step[None])[0]
        mean[i] = end
    return mean


def _enumerated_steps(loss: Loss, shape, mean, lo, hi, free) -> np.ndarray:
    if len(free) > 20:
        raise ValueError(
            f"{len(free)} weights are off the lattice; a loss that is not Quadratic is enumerated, for at most 20"
        )
    points, probs = mean[None], np.ones(1)
    for i in free:
        p = kernels.prob_up(mean[i], lo[i], hi[i])
        points = np.concatenate([points, points])
        points[: len(points) // 2, i], points[len(points) // 2 :, i] = lo[i], hi[i]
        probs = np.concatenate([probs * (1 - p), probs * p])
    values = values_of(loss, points.reshape(-1, *shape))
    for i in free:
        at_hi = points[:, i] == hi[i]
        chance_hi, chance_lo = probs[at_hi].sum(), probs[~at_hi].sum()
        rise = (probs * values)[at_hi].sum() / chance_hi - (probs * values)[~at_hi].sum() / chance_lo
        keep = at_hi if rise <= 0 else ~at_hi
        points, probs, values = points[keep], probs[keep], values[keep]
    return points[0]
