"""Plain gradient descent along the field of each method: where it goes, and what the three losses do on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._arrays import doubles
from ..formats.quantizer import Quantizer
from ..smoothing.losses import Loss, values_of
from ..smoothing.sampling import coordinates, randomized_points
from ..streams import Stream
from ._batch import Batch
from .fields import FIELDS, gradient_field

Schedule = float | Callable[[int], float]
SAMPLED = ("straight_through", "detached_noise")
"""Methods that follow one fresh draw per step; the others follow their field exactly."""


@dataclass(frozen=True)
class Trajectory:
    """``positions`` (n + 1, *shape) and the losses there, (n + 1,): ``L(w)``, ``L(cast(w))`` and ``E L(RR(w))``.

    ``diverged``: the run left every bound and was cut short after ``n`` of the steps asked for.
    """

    method: str
    positions: np.ndarray
    loss: np.ndarray
    quantized: np.ndarray
    smoothed: np.ndarray
    diverged: bool


def linear_decay(peak: float, steps: int) -> Callable[[int], float]:
    """The learning rate ``peak (1 - k / steps)`` at step k."""
    return lambda k: peak * (1 - k / steps)


def linear_ramp(steps: int, end: float = 1.0, over: float = 1.0) -> Callable[[int], float]:
    """A weight that rises from 0 to ``end`` over the first ``over`` of the steps and then stays."""
    return lambda k: end * min(1.0, k / max(1.0, over * steps))


def trajectory(
    loss: Loss,
    w0: np.ndarray,
    q: Quantizer | str,
    method: str,
    steps: int = 200,
    learning_rate: Schedule = 0.1,
    seed: int = 0,
    ramp: Schedule = 1.0,
    strength: Schedule = 10.0,
    bound: float = 1e6,
) -> Trajectory:
    """Gradient descent ``w ← w - learning_rate · field(w)`` from ``w0``.

    ``method``: one of :data:`FIELDS`. ``straight_through`` and ``detached_noise`` use one fresh draw per step from
    ``Stream(seed, "landscape/trajectory")``. ``ramp``: LOTION's λ, the field being ``∇L + λ (∇L_smooth - ∇L)``;
    ``strength``: CAGE's λ. Each of the three numbers may be a function of the step. Stops where a weight exceeds
    ``bound``. Deterministic under ``seed``; raises ValueError for an unknown method.
    """
    if method not in FIELDS:
        raise ValueError(f"unknown method {method!r}; valid: {', '.join(FIELDS)}")
    w = doubles(w0, "w0").copy()
    batch = Batch(q, w.shape)
    stream, count = Stream(seed, "landscape/trajectory"), coordinates(batch.q, w)
    positions, diverged = [w], False
    for k in range(steps):
        if method in SAMPLED:
            uniforms = stream.uniforms((1, count), step=k, dtype="float64")
            at = randomized_points(batch.q, w, uniforms)
            slope = gradient_field("float", loss, at if method == "straight_through" else w + (at - w), batch.q)[0]
        else:
            slope = gradient_field(method, loss, w[None], batch.q, _at(strength, k))[0]
            if method in ("lotion", "lotion_detached") and (weight := _at(ramp, k)) != 1:
                plain = gradient_field("float", loss, w[None], batch.q)[0]
                slope = plain + weight * (slope - plain)
        w = w - _at(learning_rate, k) * slope
        if not (np.abs(w) <= bound).all():
            diverged = True
            break
        positions.append(w)
    path = np.array(positions)
    return Trajectory(
        method, path, values_of(loss, path).astype(float), values_of(loss, batch.cast(path)).astype(float),
        batch.smoothed(loss, path), diverged,
    )  # fmt: skip


def _at(schedule: Schedule, k: int) -> float:
    return float(schedule(k)) if callable(schedule) else float(schedule)
