"""Count the local minima of one small quadratic on a frozen lattice (claim C11)."""

from __future__ import annotations

from typing import Any

import numpy as np

from lotion_theory import Stream
from lotion_theory.landscape import local_minima_quantized
from lotion_theory.rounders import Case

from ..figures import minima as drawn
from ..problems.descriptor import Config
from ..results import studies
from ..results.minima import minima_lines
from ..values import NAME
from .base import Kind
from .round import check, has_case, rounding_case


def minima_run(config: Config, seed: int) -> dict[str, Any]:
    """Count local minima of one small quadratic on a frozen lattice, by enumeration (claim C11).

    ``local_minima_raw``: plateaus of the quantized loss with no lower plateau touching them, corners included.
    ``local_minima_smoothed``: lattice points that no single step improves. ``descents``: how many of ``starts``
    coordinate descents on the smoothed loss from random points end in one of those (all, by C11).
    """
    case = rounding_case(config, seed)
    levels = list(case.grid.levels[0])
    found = local_minima_quantized(lambda points: case.loss(points[:, None, :]), levels)
    strict = found.points[found.strict]
    grids = np.stack(np.meshgrid(*levels, indexing="ij"), axis=-1).reshape(-1, len(levels))
    values = case.loss(grids[:, None, :])
    raw = _touching_minima(values.reshape([len(level) for level in levels]))
    smoothed_least, quantized_least = float(found.values.min()), float(values.min())
    ends = _descents(case, config.get("starts", 32), Stream(seed, "minima/starts"))
    known = {tuple(point) for point in found.points.reshape(len(found.points), -1)}
    return {
        "points": int(values.size), "local_minima_raw": raw, "local_minima_smoothed": len(strict),
        "global_kept": smoothed_least == quantized_least, "starts": len(ends),
        "descents": sum(tuple(end) in known for end in ends), "distinct_ends": len({tuple(end) for end in ends}),
    }  # fmt: skip


def _touching_minima(values: np.ndarray) -> int:
    """Entries of a d-dimensional table that no neighbour, diagonal ones included, is below."""
    from scipy.ndimage import minimum_filter

    return int((values <= minimum_filter(values, size=3, mode="nearest")).sum())


def _descents(case: Case, starts: int, stream: Stream) -> list[np.ndarray]:
    """Ends of coordinate descent on the smoothed loss from random points within the grid.

    On a frozen lattice the smoothed loss is affine in one weight between two levels (claim C10), so along a coordinate
    its minimum is at a level; descent stops where no level of any coordinate is lower.
    """
    h, w = case.hessian, case.weights[0]
    levels = case.grid.levels[0]
    ends = []
    for k in range(starts):
        u = stream.uniforms(len(w), step=k, dtype="float64")
        x = levels[:, 0] + u * (levels[:, -1] - levels[:, 0])
        moved = True
        while moved:
            moved = False
            for i in range(len(w)):
                # In one coordinate the expectation over the others depends on their means only.
                rest = h[i] @ (x - w) - h[i, i] * (x[i] - w[i])
                costs = rest * levels[i] + h[i, i] / 2 * (levels[i] - w[i]) ** 2
                best = _next_down(costs, levels[i], x[i])
                if best != x[i]:
                    x[i], moved = best, True
        ends.append(x)
    return ends


def _next_down(costs: np.ndarray, levels: np.ndarray, x: float) -> float:
    """The local minimum along one coordinate that descent from ``x`` reaches: downhill from level to level."""
    above = int(np.searchsorted(levels, x))
    if levels[above] == x:
        k = above
    else:
        k = above if costs[above] < costs[above - 1] else above - 1
    while True:
        near = [j for j in (k - 1, k + 1) if 0 <= j < len(levels) and costs[j] < costs[k]]
        if not near:
            return float(levels[k])
        k = min(near, key=lambda j: costs[j])


KIND = Kind(
    "minima",
    minima_run,
    check,
    takes=has_case,
    methods=False,
    settings={"starts": int},
    oracle="oracle",
    config={"format": NAME},
    words="local minima",
    table=lambda rows, experiment, reference: minima_lines(rows, experiment),
    figures=studies.of_minima,
    pictures=drawn.pictures,
)
