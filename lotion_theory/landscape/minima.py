"""Minima over quantized points, by enumeration: all local ones, and the global one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .._arrays import doubles
from ..formats.quantizer import Quantizer
from ..smoothing.losses import Loss, Quadratic, values_of
from . import codes
from ._batch import Batch

LIMIT = 2**22
"""Most quantized points enumerated."""


@dataclass(frozen=True)
class Minima:
    """Local minima, lowest first: ``points`` (k, *shape), ``values`` (k,).

    ``strict``: every neighbour is higher; False for a point on a plateau. ``quantized``: the point is one that rounding
    leaves alone.
    """

    points: np.ndarray
    values: np.ndarray
    strict: np.ndarray
    quantized: np.ndarray

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Minimum:
    """A global minimum over quantized points; ``count``: how many candidates were compared."""

    point: np.ndarray
    value: float
    count: int


def lattice_levels(q: Quantizer | str, w: np.ndarray) -> list[np.ndarray]:
    """The levels of the lattice ``w`` has now, one sorted array per weight in C order.

    Raises ValueError for a drawn scale, which has two lattices.
    """
    w = doubles(w, "w")
    batch = Batch(q, w.shape)
    branches = batch.branches(w[None])
    if len(branches) == 2:
        raise ValueError(f"{batch.q} draws its lattice: use q.freeze(w) for the more probable one")
    index = np.arange(len(batch.q.codebook.levels))[None, :]
    per_block = np.unique(branches[0].draw.lattice.level(index), axis=1)
    return [per_block[i // batch.size] for i in range(w.size)]


def local_minima_quantized(loss: Loss, levels: Sequence[np.ndarray], shape: tuple[int, ...] | None = None) -> Minima:
    """All points of a fixed lattice that no single step to a neighbouring level improves.

    ``levels``: sorted, one array per weight (see :func:`lattice_levels`); ``shape``: of the weights, (d,) by default.
    A point with a neighbour of equal value and none lower is returned with ``strict=False``. By claim C11 the strict
    ones are the strict local minima of the smoothed loss on the lattice's range. Raises ValueError beyond 2^22 points.
    """
    levels = [doubles(v, "levels") for v in levels]
    if any(v.ndim != 1 or not v.size or (np.diff(v) <= 0).any() for v in levels):
        raise ValueError("levels must be one increasing 1-D array per weight")
    sizes = tuple(len(v) for v in levels)
    _check_count(int(np.prod(sizes, dtype=float)))
    grid = np.stack([g.ravel() for g in np.meshgrid(*levels, indexing="ij")], axis=1)
    points = grid.reshape(-1, *(shape or (len(levels),)))
    values = values_of(loss, points).astype(float).reshape(sizes)
    lower, level_with = np.zeros(sizes, dtype=bool), np.zeros(sizes, dtype=bool)
    for axis in range(len(sizes)):
        rise = np.diff(values, axis=axis)
        # For the upper point of each pair the neighbour is lower where values rise; for the lower one where they fall.
        for gap, side in ((-rise, (1, 0)), (rise, (0, 1))):
            pad = [(0, 0)] * len(sizes)
            pad[axis] = side
            lower |= np.pad(gap < 0, pad)
            level_with |= np.pad(gap == 0, pad)
    keep = np.flatnonzero(~lower.ravel())
    order = keep[np.argsort(values.ravel()[keep], kind="stable")]
    return Minima(points[order], values.ravel()[order], ~level_with.ravel()[order], np.ones(len(order), dtype=bool))


def local_minima_moving(loss: Quadratic, q: Quantizer | str) -> Minima:
    """All strict local minima of the smoothed loss on a moving lattice of one real scale per tensor, by enumeration.

    With the scale held fixed the smoothed loss is affine in every weight between two levels, and the largest weight is
    always on its level; hence C11 carries over. The strict local minima are the points ``s c`` of code vectors ``c``
    that attain the lattice's end, with ``s > 0`` minimising ``L(s c)``, from which no single code step that still
    attains the end improves at the same ``s``. ``strict`` is False where such a step is level. Zero is a minimum where
    every ``s`` is zero.

    For ``absmax`` and ``gauge`` scales and positive definite Hessians; ValueError otherwise, and beyond 2^22 code
    vectors.
    """
    batch = _moving_batch(loss, q)
    book = batch.q.codebook
    unit = book.values
    _check_count(len(unit) ** batch.size)
    index = codes.indices(batch.q, batch.size)
    place = -np.ones((len(unit),) * batch.size, dtype=np.int64)
    place[tuple(index.T)] = np.arange(len(index))
    c = unit[index]
    scale, best = codes.line_minima(loss, c)
    lower, level_with = scale <= 0, np.zeros(len(c), dtype=bool)
    for axis, step in itertools.product(range(batch.size), (-1, 1)):
        moved = index.copy()
        moved[:, axis] += step
        inside = (moved[:, axis] >= 0) & (moved[:, axis] < len(unit))
        moved[~inside] = 0
        inside &= place[tuple(moved.T)] >= 0
        there = values_of(loss, (scale[:, None] * unit[moved]).reshape(-1, *batch.shape)).astype(float)
        lower |= inside & (there < best)
        level_with |= inside & (there == best)
    points, values, strict = scale[:, None] * c, best, ~level_with
    keep = np.flatnonzero(~lower)
    if not (scale > 0).any():
        points, values, strict, keep = (
            np.zeros((1, batch.size)),
            loss(np.zeros((1, *batch.shape))),
            np.ones(1, bool),
            np.array([0]),
        )
    order = keep[np.argsort(values[keep], kind="stable")]
    return Minima(
        points[order].reshape(-1, *batch.shape), values[order], strict[order], np.ones(len(order), dtype=bool)
    )


def global_minimum_quantized(
    loss: Loss, q: Quantizer | str, shape: tuple[int, ...], reach: float | None = None
) -> Minimum:
    """The least loss over all quantized points of a format: those that rounding leaves alone.

    * Frozen lattices: all lattice points.
    * Real scales (``absmax``, ``gauge``, ``zp-real``): every code vector of every block; for a :class:`Quadratic` the
      scales (and offsets) in closed form, so the result is exact. For any other loss with one block on ``absmax`` or
      ``gauge``, the scale is scanned up to weights of magnitude ``reach`` and refined: as good as the scan.
    * Stored scales (``e4m3-sr``, ``e8m0-sr``, ...): one block, every scale up to ``reach``, by default (Quadratic) a
      radius beyond which the loss exceeds ``L(0)``.

    By claim C7 this is ``min E L(RR(w))`` where the format is unbiased and its support points are fixed. Raises
    ValueError for rules whose cast points are not all fixed, beyond 2^22 candidates, and where ``reach`` is needed and
    missing.
    """
    batch = Batch(q, shape)
    rule, book = batch.q.scale, batch.q.codebook
    if rule.is_frozen:
        levels = lattice_levels(batch.q, np.zeros(shape))
        _check_count(int(np.prod([len(v) for v in levels], dtype=float)))
        grid = np.stack([g.ravel() for g in np.meshgrid(*levels, indexing="ij")], axis=1).reshape(-1, *batch.shape)
        return _least(loss, grid)
    if not rule.promise(book).fixed:
        raise ValueError(f"{batch.q}: rounding moves some of its own results, so 'quantized points' are not defined")
    if rule.sets_scale is not None:
        _check_count(len(book.levels) ** (batch.blocks * batch.size))
        if isinstance(loss, Quadratic):
            return Minimum(*codes.quadratic_minimum(loss, batch))
        if batch.blocks > 1 or not rule.has_rays:
            raise ValueError("a loss that is not Quadratic is scanned for one absmax or gauge block only")
        if reach is None:
            raise ValueError("give reach=, the largest weight magnitude to scan, for a loss that is not Quadratic")
        return Minimum(*codes.scanned_minimum(loss, batch, reach))
    if batch.blocks > 1:
        raise ValueError(f"scale {rule.name} is enumerated for one block only, not {batch.blocks}")
    if reach is None:
        reach = codes.sublevel_radius(loss)
    points = codes.stored_scale_points(batch, reach, LIMIT)
    return _least(loss, points)


def _least(loss: Loss, points: np.ndarray) -> Minimum:
    values = values_of(loss, points).astype(float)
    best = int(np.argmin(values))
    return Minimum(points[best], float(values[best]), len(points))


def _moving_batch(loss: Loss, q: Quantizer | str) -> Batch:
    if not isinstance(loss, Quadratic):
        raise ValueError(
            "local minima on a moving lattice are enumerated for Quadratic losses; use local_minima_smoothed"
        )
    batch = Batch(q, loss.center.shape)
    if not batch.q.scale.has_rays or batch.blocks > 1:
        raise ValueError(f"{batch.q} on shape {batch.shape}: enumerated for one block with scale absmax or gauge")
    return batch


def _check_count(count: int) -> None:
    if count > LIMIT:
        raise ValueError(
            f"{count:.3g} quantized points exceed the limit of {LIMIT}; take fewer weights or a smaller codebook"
        )
