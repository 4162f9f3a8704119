"""The problems that the landscape figures show, and the one call that draws them all."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lotion_theory import Quadratic, Quantizer, Stream
from lotion_theory import landscape as ls
from lotion_theory.files import file_name
from lotion_theory.landscape import codes

from . import landscapes, planes
from .style import save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METHODS = ("rtn_straight_through", "straight_through", "cage", "lotion")
FIXED_METHODS = ("float", "rtn_straight_through", "straight_through", "cage", "cage_at_weights", "lotion")
PLANE_METHODS = ("float", "rtn_straight_through", "straight_through", "cage", "lotion_detached", "lotion")


# An interval for both weights, or one for each.
Window = tuple[float, float] | tuple[tuple[float, float], tuple[float, float]]


class DoubleWell:
    """``L(w) = depth ((z² - 1)² + tilt z)``, ``z = (w - middle) / half``, on single weights: (n, 1) to (n,).

    Wells near ``middle ± half``; a positive ``tilt`` makes the left one deeper. Not quadratic: the smoothed loss and
    its second-order form differ.
    """

    def __init__(self, middle: float, half: float, depth: float = 1.0, tilt: float = 0.25) -> None:
        self.middle, self.half, self.depth, self.tilt = middle, half, depth, tilt

    def _place(self, points: np.ndarray) -> np.ndarray:
        return (points - self.middle) / self.half

    def __call__(self, points: np.ndarray) -> np.ndarray:
        z = self._place(points)
        return (self.depth * ((z * z - 1) ** 2 + self.tilt * z)).reshape(len(points), -1).sum(axis=1)

    def gradient(self, points: np.ndarray) -> np.ndarray:
        z = self._place(points)
        return self.depth * (4 * z * (z * z - 1) + self.tilt) / self.half

    def curvature(self, points: np.ndarray) -> np.ndarray:
        """Second derivative, negative between the wells."""
        z = self._place(points)
        return self.depth * (12 * z * z - 4) / self.half**2


def landscape_figures(
    format: str,
    out_dir: str | Path,
    dimension: int = 1,
    seed: int = 0,
    points: int | None = None,
    strength: float = 5.0,
    progress: Callable[[str], None] | None = None,
    steps: int = 400,
) -> list[Path]:
    """Draw the landscape of a format on illustrative problems; returns the paths of PNG, PDF and SVG files.

    ``dimension=1``: one weight on a *frozen* lattice whose step next to its middle level is 1 (a single weight is
    always on its own moving lattice, so nothing would show): the quadratic ``h = 2``, ``w* = 0.3`` and a tilted double
    well, with the slopes methods follow, and the losses for λ from 0 to 1; and a line through the optimum of a block of
    two weights, whose lattice moves.
    ``dimension=2``: a rotated quadratic over one block of two weights (three, the last held at 0, for formats with a
    zero point) with the moving lattice, and with a frozen lattice, that of ``1.7 w*``: losses, fields, minima,
    trajectories.

    ``seed`` draws the quadratic and the roundings. ``points``: resolution per axis. ``strength``: CAGE's λ, in units of
    the loss's second derivative. ``progress`` is told the name of each figure. ``steps``: of the trajectories. Blocks
    of the format are replaced by the one block of the problem. Raises ValueError for complex and frozen formats, and
    for dimensions other than 1 and 2.
    """
    q = Quantizer.parse(format)
    if q.codebook.is_complex:
        raise ValueError(f"landscapes are drawn over real weights; format {format!r} is complex")
    if q.scale.is_frozen:
        raise ValueError(
            f"format {format!r} has no lattice of its own to draw; name the rule that sets it, as in int4/absmax"
        )
    if dimension not in (1, 2):
        raise ValueError(f"dimension={dimension!r}; valid: 1, 2")
    figures = (
        _one_dimension(q, seed, points or 601, strength)
        if dimension == 1
        else _two_dimensions(q, seed, points or 241, strength, steps)
    )
    paths = []
    for name, build in figures.items():
        if progress is not None:
            progress(name)
        stem = file_name(f"{str(q).replace('/', '-').replace('=', '')}_{dimension}d_{name}")
        paths += save(build(), Path(out_dir) / stem)
    return paths


# --- one weight, and a line among two --------------------------------------------------------------------------------


def unit_step(q: Quantizer) -> tuple[Quantizer, float, tuple[float, float]]:
    """``q`` frozen so that the gap above a middle level is 1: ``(quantizer, middle level, ends of the lattice)``.

    The middle level is zero, or the next lower one; for levels of unequal gaps the first above it where the gap
    changes.
    """
    codes = q.codebook.values
    middle = len(codes) // 2 if q.codebook.unsigned else int(np.searchsorted(codes, 0.0, side="right")) - 1
    gaps = np.diff(codes)
    unequal = [k for k in range(max(middle, 1), len(gaps)) if abs(gaps[k] - gaps[k - 1]) > 1e-9]
    middle = min(unequal[0] if unequal else middle, len(codes) - 2)
    scale = 1 / (codes[middle + 1] - codes[middle])
    return (
        one_block(q).with_scale(scale),
        float(scale * codes[middle]),
        (float(scale * codes[0]), float(scale * codes[-1])),
    )


def _one_dimension(q: Quantizer, seed: int, points: int, strength: float) -> dict[str, Callable[[], Figure]]:
    frozen, middle, (low, high) = unit_step(q)
    start, along = np.array([0.0]), np.array([1.0])
    quadratic = Quadratic(np.array([2.0]), np.array([middle + 0.3]))
    # Where the lattice ends within the window, a little of the clipped range is shown.
    near = max(low - 0.2, middle - 1.6), min(high + 0.2, middle + 2.1)
    reach = min(1.95, max(1.2, (high - low) / 2))
    centre = min(max(middle, low + reach), high - reach) if 2 * reach < high - low else (low + high) / 2
    well = DoubleWell(centre + 0.05, reach * 0.68)
    name = q.codebook.name

    def losses() -> Figure:
        def along_line(loss, window, curvature=None) -> ls.Slice1D:
            return ls.slice_1d(
                loss, start, along, frozen, window, points, curvature, fields=METHODS, strength=strength
            )  # fmt: skip

        first = along_line(quadratic, near)
        second = along_line(well, (centre - reach, centre + reach), well.curvature)
        return landscapes.figure_1d(
            [first, second], [f"{name}, quadratic with $w^*$ off the lattice", f"{name}, tilted double well"]
        )

    def ramp() -> Figure:
        window = max(low, middle - 0.7), min(high, middle + 1.3)
        found = ls.slice_1d(quadratic, start, along, frozen, window, points, lambdas=[k / 10 for k in range(11)])
        return landscapes.figure_lambda(found, title=f"{name}, quadratic: from float to smoothed")

    def line() -> Figure:
        loss, shape = rotated_quadratic(seed, q.codebook.unsigned)
        direction = np.zeros(shape)
        direction[:2] = (0.35, -1.0)
        methods = ("rtn_straight_through", "straight_through", "lotion_detached", "lotion")
        found = ls.slice_1d(loss, loss.center, direction, one_block(q), 0.8, points, fields=methods)
        return landscapes.figure_1d(
            found, [f"{q}, moving lattice: a line through the float optimum"], "position $t$ on the line"
        )

    return {"losses": losses, "ramp": ramp, "line": line}


# --- two weights -----------------------------------------------------------------------------------------------------


def one_block(q: Quantizer) -> Quantizer:
    """The format with all weights in one block."""
    return q if str(q.partition) == "tensor" else q.with_partition("tensor")


def rotated_quadratic(seed: int, anchored: bool = False) -> tuple[Quadratic, tuple[int, ...]]:
    """Curvatures 1 and 20 in a drawn direction, the optimum at distance 1 in the first quadrant.

    ``anchored`` adds a third weight with optimum 0: between two weights a lattice with a zero point has nothing to
    round.
    """
    generator = Stream(seed, "figures/landscape").numpy_generator()
    angle, toward = generator.uniform(0.6, 1.0), generator.uniform(0.35, 0.6)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    hessian = turn @ np.diag([1.0, 20.0]) @ turn.T
    center = np.array([np.cos(toward), np.sin(toward)])
    if anchored:
        hessian = np.pad(hessian, (0, 1))
        hessian[2, 2], center = 1.0, np.append(center, 0.0)
    return Quadratic((hessian + hessian.T) / 2, center), center.shape


def _two_dimensions(
    q: Quantizer, seed: int, points: int, strength: float, steps: int
) -> dict[str, Callable[[], Figure]]:
    moving = one_block(q)
    loss, shape = rotated_quadratic(seed, q.codebook.unsigned)
    fixed = moving.freeze(1.7 * loss.center)
    origin, axes = np.zeros(shape), (np.eye(shape[0])[0], np.eye(shape[0])[1])
    wide = (-0.45, 1.45)
    first, second = ((float(c) - 0.5, float(c) + 0.5) for c in loss.center[:2])
    close = (first, second)
    count = "two weights" if len(loss.center) == 2 else "three weights, the third being 0"
    rays = codes.values(moving, 2) if moving.scale.has_rays and len(q.codebook.levels) <= 17 else None
    levels = ls.lattice_levels(fixed, loss.center)
    lattice = np.stack([g.ravel() for g in np.meshgrid(*levels[:2], indexing="ij")], axis=1)
    best = _best(loss, moving, shape)
    star = None if best is None else best.point

    @cache
    def grid(is_moving: bool, window: Window, names: tuple[str, ...] = ()) -> ls.Slice2D:
        return ls.slice_2d(
            loss, origin, axes, moving if is_moving else fixed, window, points, fields=names,
            field_points=max(12, points // 2), strength=strength,
        )  # fmt: skip

    def losses() -> Figure:
        return planes.figure_2d(
            grid(True, wide), rays, title=f"{q}: one block of {count}, whose lattice moves with them"
        )

    def losses_fixed() -> Figure:
        return planes.figure_2d(
            grid(False, wide), None, lattice, f"{q}: a frozen lattice, that of 1.7 times the float optimum"
        )

    def fields() -> Figure:
        return planes.figure_fields(grid(True, close, PLANE_METHODS), star, rays)

    def fields_fixed() -> Figure:
        found = grid(False, close, FIXED_METHODS)
        return planes.figure_fields(found, ls.global_minimum_quantized(loss, fixed, shape).point, None, lattice)

    def trajectories() -> Figure:
        runs = _paths(loss, moving, seed, strength, steps)
        return planes.figure_trajectories(
            grid(True, close, PLANE_METHODS), runs, None if best is None else (best.point, best.value)
        )

    def minima() -> Figure:
        still, moved = ls.local_minima_quantized(loss, levels), ls.local_minima_moving(loss, moving)
        titles = [f"{which} lattice: {_count(found, wide)}" for which, found in (("frozen", still), ("moving", moved))]
        return planes.figure_minima(
            [grid(False, wide), grid(True, wide)], [still, moved], titles, [None, rays], [lattice]
        )

    out = {
        "losses": losses, "losses_fixed": losses_fixed, "fields": fields, "fields_fixed": fields_fixed,
        "trajectories": trajectories,
    }  # fmt: skip
    return {**out, "minima": minima} if moving.scale.has_rays else out


def _paths(loss: Quadratic, q: Quantizer, seed: int, strength: float, steps: int) -> list[ls.Trajectory]:
    """Where each method goes from beside the optimum.

    One schedule for all, tuned for none: this shows where the fields lead, and compares nothing.
    """
    start = loss.center + np.array([0.35, 0.1, 0.0])[: len(loss.center)]
    return [
        ls.trajectory(
            loss, start, q, method, steps, ls.linear_decay(0.02, steps), seed,
            ramp=ls.linear_ramp(steps, over=0.5), strength=ls.linear_ramp(steps, strength, over=0.5),
        )
        for method in PLANE_METHODS
    ]  # fmt: skip


def _count(found: ls.Minima, window: tuple[float, float]) -> str:
    inside = int(((found.points > window[0]) & (found.points < window[1])).all(axis=1).sum())
    some = "1 local minimum" if len(found) == 1 else f"{len(found)} local minima"
    return some if inside == len(found) else f"{some}, {inside} in view"


def _best(loss: Quadratic, q: Quantizer, shape: tuple[int, ...]) -> ls.Minimum | None:
    """The global minimum over quantized points, None for formats where it is not defined or not enumerable."""
    try:
        return ls.global_minimum_quantized(loss, q, shape)
    except ValueError:
        return None
