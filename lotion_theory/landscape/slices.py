"""One- and two-dimensional slices: float, raw quantized, smoothed and second-order losses, and gradient fields."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .._arrays import doubles
from ..formats.quantizer import Quantizer
from ..smoothing.losses import Loss, Quadratic, values_of
from ._batch import Batch
from .fields import gradient_field
from .kinks import MERGE, kinks_and_jumps

Curvature = np.ndarray | Callable[[np.ndarray], np.ndarray] | None


@dataclass(frozen=True)
class Slice1D:
    """Losses along ``origin + t direction``; every array of shape (n,) is over ``t``.

    ``t``: evenly spaced, with a point on either side of every kink and jump added, so that a line plot shows them
    upright.
    ``loss``: ``L(w)``; ``quantized``: ``L(cast(w))``; ``smoothed``: ``E L(RR(w))``; ``second_order``:
    ``L + ½ Σ g Var`` or None. ``kinks``: where the smoothed loss changes its formula (a weight enters another cell,
    another weight sets the scale, a stored scale changes); ``jumps``: where the cast weights change code.
    ``blends``: (len(lambdas), n), the losses LOTION passes through while its weight λ is ramped.
    ``fields``: directional derivative per method, ``field · direction``.
    """

    t: np.ndarray
    loss: np.ndarray
    quantized: np.ndarray
    smoothed: np.ndarray
    second_order: np.ndarray | None
    kinks: np.ndarray
    jumps: np.ndarray
    lambdas: np.ndarray
    blends: np.ndarray
    fields: dict[str, np.ndarray]
    origin: np.ndarray
    direction: np.ndarray
    format: str
    lattice: str
    strength: float


@dataclass(frozen=True)
class Slice2D:
    """Losses on ``origin + s directions[0] + t directions[1]``: arrays of shape (len(t), len(s)).

    ``fields``: per method (len(field_t), len(field_s), 2), the derivatives along the two directions; for orthonormal
    directions this is the field projected on the plane, and stands upright on the contours.
    """

    s: np.ndarray
    t: np.ndarray
    loss: np.ndarray
    quantized: np.ndarray
    smoothed: np.ndarray
    second_order: np.ndarray | None
    field_s: np.ndarray
    field_t: np.ndarray
    fields: dict[str, np.ndarray]
    origin: np.ndarray
    directions: tuple[np.ndarray, np.ndarray]
    format: str
    lattice: str
    strength: float


def _blended_with(blend: str, smoothed: np.ndarray, second: np.ndarray | None) -> np.ndarray:
    """What the loss is blended with; ValueError for an unknown ``blend``, and for a penalty without curvature."""
    if blend not in ("smoothed", "penalty"):
        raise ValueError(f"unknown blend {blend!r}; valid: smoothed, penalty")
    if blend == "smoothed":
        return smoothed
    if second is None:
        raise ValueError("blend='penalty' needs curvature=")
    return second


def slice_1d(
    loss: Loss,
    w: np.ndarray,
    direction: np.ndarray,
    q: Quantizer | str,
    span: float | tuple[float, float] = 1.0,
    points: int = 401,
    curvature: Curvature = None,
    lattice: str = "moving",
    lambdas: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    blend: str = "smoothed",
    fields: Sequence[str] = (),
    strength: float = 10.0,
    scan: int = 2049,
) -> Slice1D:
    """Losses, kinks and optionally gradient fields along ``w + t direction``, in float64.

    Args:
        loss: batched, (n, *w.shape) to (n,); with ``gradient`` if ``fields`` are asked for.
        w, direction: arrays of one shape. A tensor of a single weight is always on its own absmax lattice, so a moving
            lattice shows something only with two weights or more to a block; a single weight needs a frozen lattice.
        q: any real format. The smoothed loss is enumerated (14 weights off the lattice), or the closed form of a
            :class:`Quadratic`.
        span: ``t`` from -span to span, or a pair.
        points: evenly spaced values of ``t``, to which the sides of kinks and jumps are added.
        curvature: diagonal ``g`` of the second-order loss in ``w``'s shape, or a function of points (n, *w.shape)
            giving it per point; by default that of a :class:`Quadratic`, else none.
        lattice: ``"moving"`` (each point has its own) or ``"fixed"`` (all points use that of ``w``, and clip at its
            ends).
        lambdas, blend: ``"smoothed"`` for ``L + λ (L_smooth - L)``, ``"penalty"`` for ``L + λ ½ Σ g Var``.
        fields, strength: names from :data:`FIELDS`, and CAGE's λ.
        scan: how many places are compared to find kinks and jumps, each then bisected to float resolution; a weight
            that leaves its cell and returns between two of them goes unnoticed.

    Raises ValueError naming the argument that is wrong and the valid values.
    """
    w, direction = _direction(w, direction, "direction")
    low, high = _interval(span)
    if points < 2:
        raise ValueError(f"points={points}: a slice needs at least 2")
    batch = _batch(q, w, lattice)

    def along(t: np.ndarray) -> np.ndarray:
        return w + t.reshape(-1, *[1] * w.ndim) * direction

    kinks, jumps = kinks_and_jumps(batch, along, low, high, scan)
    t = _around(np.linspace(low, high, points), np.concatenate([kinks, jumps]), 4 * MERGE * (high - low))
    path = along(t)
    values, smoothed = values_of(loss, path).astype(float), batch.smoothed(loss, path)
    second = _second_order(loss, values, batch, path, curvature)
    target = _blended_with(blend, smoothed, second)
    ramp = np.asarray(lambdas, dtype=float)
    slopes = {f: _along(gradient_field(f, loss, path, batch.q, strength), direction) for f in fields}
    return Slice1D(
        t, values, values_of(loss, batch.cast(path)).astype(float), smoothed, second, kinks, jumps, ramp,
        values + ramp[:, None] * (target - values), slopes, w, direction, str(Quantizer.parse(q)), lattice, strength,
    )  # fmt: skip


def slice_2d(
    loss: Loss,
    w: np.ndarray,
    directions: tuple[np.ndarray, np.ndarray],
    q: Quantizer | str,
    span: float | tuple[float, float] | tuple[tuple[float, float], tuple[float, float]] = 1.0,
    points: int = 121,
    curvature: Curvature = None,
    lattice: str = "moving",
    fields: Sequence[str] = (),
    field_points: int = 17,
    strength: float = 10.0,
) -> Slice2D:
    """Losses on a grid of ``points`` by ``points``, and gradient fields on one of ``field_points`` by ``field_points``.

    Arguments as for :func:`slice_1d`; ``span`` may also be a pair of intervals, for ``s`` and ``t``. The field's grid
    leaves half a step free at the border.
    """
    w, first = _direction(w, directions[0], "directions[0]")
    _, second = _direction(w, directions[1], "directions[1]")
    if np.linalg.matrix_rank(np.stack([first.ravel(), second.ravel()])) < 2:
        raise ValueError("the two directions are parallel: they span no plane")
    spans = list(span) if isinstance(span, tuple) and np.ndim(span) == 2 else [span, span]
    ends_s, ends_t = _interval(spans[0]), _interval(spans[1])
    batch = _batch(q, w, lattice)

    def plane(s: np.ndarray, t: np.ndarray) -> np.ndarray:
        extra = [1] * w.ndim
        grid = w + s.reshape(1, -1, *extra) * first + t.reshape(-1, 1, *extra) * second
        return grid.reshape(-1, *w.shape)

    s, t = np.linspace(*ends_s, points), np.linspace(*ends_t, points)
    grid, form = plane(s, t), (points, points)
    values = values_of(loss, grid).astype(float)
    second_order = _second_order(loss, values, batch, grid, curvature)
    field_s, field_t = (_centres(*ends, field_points) for ends in (ends_s, ends_t))
    coarse = plane(field_s, field_t)
    found = {}
    for name in fields:
        slope = gradient_field(name, loss, coarse, batch.q, strength)
        found[name] = np.stack([_along(slope, first), _along(slope, second)], axis=-1).reshape(
            field_points, field_points, 2
        )
    return Slice2D(
        s, t, values.reshape(form), values_of(loss, batch.cast(grid)).astype(float).reshape(form),
        batch.smoothed(loss, grid).reshape(form), None if second_order is None else second_order.reshape(form),
        field_s, field_t, found, w, (first, second), str(Quantizer.parse(q)), lattice, strength,
    )  # fmt: skip


def _direction(w, direction, name: str) -> tuple[np.ndarray, np.ndarray]:
    w, direction = doubles(w, "w"), doubles(direction, name)
    if direction.shape != w.shape:
        raise ValueError(f"{name} has shape {direction.shape}, expected that of w, {w.shape}")
    if not np.isfinite(w).all() or not np.isfinite(direction).all():
        raise ValueError(f"w and {name} must be finite")
    if not direction.any():
        raise ValueError(f"{name} is zero: it leads nowhere")
    return w, direction


def _interval(span) -> tuple[float, float]:
    low, high = (-span, span) if np.ndim(span) == 0 else span
    if not low < high:
        raise ValueError(f"span={span!r}: valid are a positive number and a pair (low, high) with low < high")
    return float(low), float(high)


def _batch(q: Quantizer | str, w: np.ndarray, lattice: str) -> Batch:
    if lattice not in ("moving", "fixed"):
        raise ValueError(f"unknown lattice {lattice!r}; valid: moving, fixed")
    moving = Batch(q, w.shape)
    return moving if lattice == "moving" else Batch(moving.q.freeze(w), w.shape)


def _second_order(loss, values, batch: Batch, points, curvature: Curvature) -> np.ndarray | None:
    if curvature is None:
        if not isinstance(loss, Quadratic):
            return None
        curvature = loss.curvature
    g = np.asarray(curvature(points) if callable(curvature) else curvature, dtype=float)
    if g.shape not in (points.shape, points.shape[1:]):
        raise ValueError(
            f"curvature has shape {g.shape}, expected {points.shape[1:]}, or {points.shape} from a function"
        )
    return values + (g * batch.variance(points)).reshape(len(points), -1).sum(axis=1) / 2


def _along(slope: np.ndarray, direction: np.ndarray) -> np.ndarray:
    return slope.reshape(len(slope), -1) @ direction.ravel()


def _around(t: np.ndarray, changes: np.ndarray, distance: float) -> np.ndarray:
    """``t`` without points closer than ``distance`` to a change, plus one point on either side of each."""
    if not changes.size:
        return t
    inside = changes[(changes - distance > t[0]) & (changes + distance < t[-1])]
    near = np.abs(t[:, None] - inside[None]).min(axis=1) < distance if inside.size else np.zeros(t.shape, bool)
    return np.unique(np.concatenate([t[~near], inside - distance, inside + distance]))


def _centres(low: float, high: float, count: int) -> np.ndarray:
    edges = np.linspace(low, high, count + 1)
    return (edges[:-1] + edges[1:]) / 2
