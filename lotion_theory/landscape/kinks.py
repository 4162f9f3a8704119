"""Where along a line the smoothed loss changes its formula (kinks) and where the cast weights jump."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..formats.lattice import move_to_nearest
from ._batch import Batch

MERGE = 1e-9
"""Changes closer together than this fraction of the span are reported once, at their middle."""

MOST = 2**15
"""Most changes sought along one line."""


def find_changes(
    signature: Callable[[np.ndarray], np.ndarray], low: float, high: float, scan: int = 2049
) -> np.ndarray:
    """All ``t`` in (low, high) at which ``signature`` changes, sorted; each by bisection to float resolution.

    ``signature`` maps (n,) to (n, k). A value that changes and changes back between two of the ``scan`` points is
    missed. Raises ValueError beyond 2^15 changes.
    """
    t = np.linspace(low, high, scan)
    seen = signature(t)
    a, b, seen_a, seen_b = t[:-1], t[1:], seen[:-1], seen[1:]
    resolution = np.finfo(float).eps * max(abs(low), abs(high))
    found = []
    while True:
        differs = (seen_a != seen_b).any(axis=1)
        a, b, seen_a, seen_b = a[differs], b[differs], seen_a[differs], seen_b[differs]
        fine = b - a <= resolution
        found += ((a[fine] + b[fine]) / 2).tolist()
        a, b, seen_a, seen_b = a[~fine], b[~fine], seen_a[~fine], seen_b[~fine]
        if a.size > MOST:
            raise ValueError(f"more than {MOST} kinks or jumps along the line: take a shorter span or a coarser format")
        if not a.size:
            margin = MERGE * (high - low)
            t = np.sort(found)
            return _merged(t[(t > low + margin) & (t < high - margin)], margin)
        middle = (a + b) / 2
        seen_m = signature(middle)
        a, b = np.concatenate([a, middle]), np.concatenate([middle, b])
        seen_a, seen_b = np.concatenate([seen_a, seen_m]), np.concatenate([seen_m, seen_b])


def _merged(t: np.ndarray, distance: float) -> np.ndarray:
    if not t.size:
        return t
    groups = np.split(t, np.flatnonzero(np.diff(t) > distance) + 1)
    return np.array([(g[0] + g[-1]) / 2 for g in groups])


def kinks_and_jumps(
    batch: Batch, path: Callable[[np.ndarray], np.ndarray], low: float, high: float, scan: int
) -> tuple[np.ndarray, np.ndarray]:
    """Where on ``path``, (n,) to (n, *shape), the smoothed loss changes its formula, and where cast weights jump."""
    shared, smooth = _signature(batch, path(np.array([low])))[1]

    def both(t: np.ndarray) -> np.ndarray:
        return _signature(batch, path(t))[0]

    t = find_changes(both, low, high, scan)
    if not t.size:
        return t, t
    margin = 2 * MERGE * (high - low)
    differs = both(t - margin) != both(t + margin)
    in_smoothed = differs[:, : shared + smooth].any(axis=1)
    in_cast = differs[:, :shared].any(axis=1) | differs[:, shared + smooth :].any(axis=1)
    return t[in_smoothed], t[in_cast]


def _signature(batch: Batch, points: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """Numbers, (n, k), constant as long as nothing changes along a path, and how many of the columns are what.

    First what concerns both losses: the stored value of scales that are rounded. Then what concerns the smoothed loss:
    which weights set the scale, with their signs, the cell of every weight on every lattice and, for drawn scales,
    which weights are spread over both. Last the codes to which the weights are cast.
    """
    law = batch.law(points)
    n, branches = len(points), law.branches
    shared, smooth = _lattice_parts(batch, points, branches)
    smooth += [_cell_part(b, n) for b in branches]
    codes: list[np.ndarray] = []
    for cell in law.cast_cells():
        near = move_to_nearest(cell)
        code: np.ndarray = np.where(near == cell.hi, cell.index_hi, cell.index_lo)  # type: ignore[assignment]
        codes.append(code.reshape(n, -1))
    if len(branches) == 2:
        coarse = np.repeat(law.likelier().reshape(n, -1), batch.size, axis=1)
        codes = [np.where(coarse, codes[1], codes[0]), coarse.astype(np.int64)]
    widths = tuple(sum(part.shape[1] for part in parts) for parts in (shared, smooth))
    return np.concatenate([*shared, *smooth, *codes], axis=1), (widths[0], widths[1])


def _cell_part(branch, n: int) -> np.ndarray:
    cell = branch.cell
    # A weight that should run along a level leaves it by rounding errors only: within those it counts as on the level.
    slack = 8 * np.finfo(float).eps * np.maximum(abs(cell.lo), abs(cell.hi)).max(axis=1, keepdims=True)
    on_hi, on_lo = cell.hi - cell.target <= slack, cell.target - cell.lo <= slack
    low = np.where(on_hi, cell.index_hi, cell.index_lo)
    high = np.where(on_lo, cell.index_lo, cell.index_hi)
    parts = [low.reshape(n, -1), high.reshape(n, -1)]
    if branch.prob is not None:
        parts.append(np.sign(branch.prob).reshape(n, -1) + (branch.prob >= 1).reshape(n, -1))
    return np.concatenate(parts, axis=1)


def _lattice_parts(batch: Batch, points: np.ndarray, branches) -> tuple[list[np.ndarray], list[np.ndarray]]:
    n, scale = len(points), batch.q.scale
    rows = points.reshape(-1, batch.size)
    shared: list[np.ndarray] = [np.sign(b.draw.lattice.top).reshape(n, -1) for b in branches]
    smooth: list[np.ndarray] = []
    if scale.couples_blocks:
        stored, _ = batch.two_levels(points)
        size = np.abs(points.reshape(n, -1))
        leads = np.sign(points.reshape(n, -1)) * (size == size.max(axis=1, keepdims=True))
        return [*shared, stored.draw.lattice.top.reshape(n, -1)], [leads]
    jacobian = scale.jacobian(rows, batch.q.codebook, "float64")
    for rate in (jacobian.top, jacobian.bottom, jacobian.p):
        if rate is not None:
            smooth.append((np.sign(rows) * (rate != 0)).reshape(n, -1))
    if jacobian.top is None:
        shared += [b.draw.lattice.top.reshape(n, -1) for b in branches]
    for b in branches:
        if b.draw.mixture is not None:
            threshold, p, _ = b.draw.mixture
            smooth.append(((abs(rows) > threshold) & (p < 1)).reshape(n, -1))
    if scale.zero_point in ("integer", "stored"):
        shared.append(branches[0].draw.lattice.bottom.reshape(n, -1))
    return shared, smooth
