"""The vector fields that training methods follow: gradients, or expectations of what they use as a gradient."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._arrays import doubles
from ..formats.quantizer import Quantizer
from ..smoothing import closed_form, gradients
from ..smoothing.losses import Loss, Quadratic, slopes_of
from ._batch import Batch


class _Stacked(Quadratic):
    """The sum of one quadratic over many points, seen as a loss of all their blocks: (points * blocks, size) weights.

    The closed forms ask a quadratic for a gradient, a diagonal and products within blocks only, so one call of them
    serves all points.
    """

    def __init__(self, loss: Quadratic, batch: Batch, count: int) -> None:
        self._loss, self._rows = loss, (count * batch.blocks, batch.size)
        self._blocks = (count, batch.blocks, batch.size)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        each = points.reshape(-1, *self._loss.center.shape)
        return self._loss.gradient(each).reshape(points.shape)

    @property
    def curvature(self) -> np.ndarray:
        return np.tile(self._loss.curvature.reshape(self._blocks[1:]), (self._blocks[0], 1))

    def block_products(self, blocks: np.ndarray) -> np.ndarray:
        return np.concatenate([self._loss.block_products(b) for b in blocks.reshape(self._blocks)])


def _smoothed_slope(loss: Loss, points: np.ndarray, batch: Batch, moving: bool) -> np.ndarray:
    if isinstance(loss, Quadratic) and not batch.q.scale.couples_blocks:
        stacked = _Stacked(loss, batch, len(points))
        rows = points.reshape(stacked._rows)
        return closed_form.smoothed_gradient(stacked, rows, batch.on_rows(len(points)), moving).reshape(points.shape)
    if isinstance(loss, Quadratic):
        return np.array([closed_form.smoothed_gradient(loss, w, batch.q, moving) for w in points])
    return np.array([gradients.exact(loss, w, batch.q, moving) for w in points])


def _cage(slope: np.ndarray, points: np.ndarray, cast: np.ndarray, strength: float) -> np.ndarray:
    return slope + strength * (points - cast)


_RULES: dict[str, Callable[[Loss, np.ndarray, Batch, float], np.ndarray]] = {
    "float": lambda loss, w, b, _: slopes_of(loss, w),
    "rtn_straight_through": lambda loss, w, b, _: slopes_of(loss, b.cast(w)),
    "straight_through": lambda loss, w, b, _: b.expectation(lambda x: slopes_of(loss, x), w),
    # The noise is RR's own error read as additive noise, as in smoothing.gradients: hence the same expectation.
    "detached_noise": lambda loss, w, b, _: b.expectation(lambda x: slopes_of(loss, w + (x - w)), w),
    "lotion_detached": lambda loss, w, b, _: _smoothed_slope(loss, w, b, moving=False),
    "lotion": lambda loss, w, b, _: _smoothed_slope(loss, w, b, moving=True),
    "cage": lambda loss, w, b, k: _cage(slopes_of(loss, b.cast(w)), w, b.cast(w), k),
    "cage_at_weights": lambda loss, w, b, k: _cage(slopes_of(loss, w), w, b.cast(w), k),
}

FIELDS = tuple(_RULES)
"""Names of all fields; see :func:`gradient_field`."""


def gradient_field(name: str, loss: Loss, points: np.ndarray, q: Quantizer | str, strength: float = 10.0) -> np.ndarray:
    """What method ``name`` follows downhill at every one of ``points`` (n, *shape); returns the same shape.

    * ``float``: ``∇L(w)``, training that ignores quantization.
    * ``rtn_straight_through``: ``∇L(cast(w))``, quantization-aware training with the straight-through estimator (STE).
    * ``straight_through``: ``E ∇L(RR(w))``, the expectation of STE on randomized rounding (RR-STE, "RAT").
    * ``detached_noise``: ``E ∇L(w + ε)``, ε distributed as RR's error but not differentiated; equal to the previous
      one.
    * ``lotion``: ``∇ E L(RR(w))``, the gradient of the smoothed loss, moving lattice included (claim C15).
    * ``lotion_detached``: the same with the lattice of each point held fixed.
    * ``cage``: ``∇L(cast(w)) + strength (w - cast(w))`` (arXiv 2510.18784).
    * ``cage_at_weights``: ``∇L(w) + strength (w - cast(w))``, whose zeros are CAGE's λ-Pareto points.

    Expectations are exact, by enumeration. ``strength`` has the units of a second derivative of the loss. Raises
    ValueError for an unknown name and for a loss without ``gradient``.
    """
    if name not in _RULES:
        raise ValueError(f"unknown field {name!r}; valid: {', '.join(FIELDS)}")
    points = doubles(points, "points")
    return np.asarray(_RULES[name](loss, points, Batch(q, points.shape[1:]), strength))
