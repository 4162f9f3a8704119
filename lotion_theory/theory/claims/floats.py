"""The law claims once more in floating point: every float16 value, random and directed blocks of each float type."""

from __future__ import annotations

import itertools
from importlib.util import find_spec

import numpy as np

from ..._arrays import astype, largest
from ...formats.law import Branch, law_of
from ...formats.quantizer import Quantizer
from ...streams import Stream
from ._base import Outcome
from .blocks import magnitudes, moved_blocks
from .laws import C1, C3, C4, C6

_BLOCKS = 2048


def float_types() -> tuple[str, ...]:
    """The float types that can be checked here; bfloat16 needs ml_dtypes for numpy arrays."""
    return ("float64", "float32", "float16", *(("bfloat16",) if find_spec("ml_dtypes") else ()))


def _size(q: Quantizer) -> int:
    return q.partition.size or 16


def random_blocks(q: Quantizer, dtype: str, purpose: str) -> tuple[Quantizer, np.ndarray]:
    """Blocks of a format in a float type: normal and heavy-tailed, at magnitudes near 1, huge and near the subnormals;
    and blocks whose largest weight sits on a scale breakpoint or one place beside it."""
    size = _size(q)
    generator = Stream(0, f"claims/floats/{purpose}/{dtype}").numpy_generator()
    x = generator.standard_normal((_BLOCKS, size))
    x[::3] *= np.exp(generator.standard_normal((len(x[::3]), size)))
    exponents = {"float16": (-8, 3), "bfloat16": (-60, 60), "float32": (-60, 60), "float64": (-200, 200)}[dtype]
    x[1::4] *= 2.0 ** generator.integers(*exponents, size=(len(x[1::4]), 1))
    with np.errstate(over="ignore"):
        w = astype(astype(x, "float32") if dtype == "bfloat16" else x, dtype)
    edges = np.array([float(v) for v in magnitudes(q) if v > 0]) if not q.codebook.is_complex else np.array([1.0, 1.5])
    limit = largest(dtype)
    assert limit is not None, "dtype is a float type"
    edges = edges[edges < 0.9 * limit]
    rows = generator.integers(0, len(w), size=3 * len(edges))
    leaders = astype(astype(np.repeat(edges, 3), "float32"), dtype)
    bits = {"float64": np.int64, "float32": np.int32}.get(dtype, np.int16)
    leaders = (leaders.view(bits) + np.tile(np.array([-1, 0, 1], dtype=bits), len(edges))).view(leaders.dtype)
    w[rows, 0] = leaders
    w[rows[::2], 0] = -w[rows[::2], 0]
    if q.scale.largest_scale is not None:
        # Magnitudes beyond the largest stored scale are outside every promise: fold them back by a power of two.
        size_of = np.abs(w.astype(np.float64)).max(axis=1, keepdims=True)
        reach = float(q.codebook.high * q.scale.largest_scale)
        fold = np.where(size_of > reach, 2.0 ** -np.ceil(np.log2(np.maximum(size_of, 1) / reach)), 1.0)
        w = (w.astype(np.float64) * fold).astype(w.dtype)
    limited = np.abs(w[rows, 1:].astype(np.float64)) < np.abs(leaders.astype(np.float64))[:, None]
    w[rows, 1:] = np.where(limited, w[rows, 1:], np.zeros((), w.dtype))
    if q.codebook.is_complex:
        if dtype not in ("float32", "float64"):
            raise _NoComplexType(dtype)
        w = (w[:, ::2] + 1j * w[:, 1::2]).astype("complex64" if dtype == "float32" else "complex128")
        size //= 2
    local = (
        q.with_partition(f"block={size}")
        if not q.scale.is_frozen
        else q.with_partition(f"block={size}").with_scale(1.0)
    )
    return local, w


class _NoComplexType(Exception):
    """There is no complex type with parts of this float type."""


def _dtypes(q: Quantizer) -> list[str]:
    return [k for k in float_types() if not q.codebook.is_complex or k in ("float32", "float64")]


def _eps(dtype: str) -> float:
    return 2.0**-52 if dtype == "float64" else 2.0**-23


@C1.check("property", "random and directed blocks in every float type")
def float_mean(q: Quantizer) -> Outcome:
    """On one lattice the mean is ``w`` to the bit. On drawn ones it is a sum of two products, each with a few roundings
    of quantities no larger than the block's magnitude, and a two-level scale is itself a rounded product: 8 units in
    the last place of that magnitude are allowed there."""
    checked, widest = 0, (0.0, 0.0, 0.0)
    for dtype in _dtypes(q):
        local, w = random_blocks(q, dtype, "C1")
        law = local.block_law(w)
        x, mean = law.x, law.mean()
        allowed = 8 * _eps(dtype) * np.abs(x).max(axis=1, keepdims=True) * (q.scale.is_drawn or q.scale.couples_blocks)
        gap = np.abs(mean - x)
        checked += x.size
        bad = gap > allowed
        if bad.any():
            i, j = np.argwhere(bad)[0]
            return Outcome(
                float(mean[i, j]),
                float(x[i, j]),
                checked,
                f"{dtype} block with largest magnitude {np.abs(x[i]).max():.9g}, weight {x[i, j]:.9g}",
                float(np.broadcast_to(allowed, x.shape)[i, j]),
            )
        at = np.unravel_index(int(np.argmax(gap)), gap.shape)
        widest = (float(mean[at]), float(x[at]), float(np.broadcast_to(allowed, x.shape)[at]))
    return Outcome(widest[0], widest[1], checked, None, widest[2], note=", ".join(_dtypes(q)))


def _patterns(size: int) -> list[np.ndarray]:
    """Which weights go up: all patterns over the first two weights and the others together, and by turns."""
    out = []
    for a, b, c in itertools.product((False, True), repeat=3):
        up = np.full(size, c)
        up[:2] = [a, b][:size]
        out.append(up)
    alternating = np.arange(size) % 2 == 0
    return [*out, alternating, ~alternating]


def _corner(branch: Branch, up: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The support points of float blocks whose weights go ``up``; which of them have positive probability."""
    draw, cell = branch
    lo, hi = np.asarray(cell.lo), np.asarray(cell.hi)
    drawn = np.ones(len(lo), dtype=bool) if draw.prob is None else draw.prob[:, 0] > 0
    free = hi > lo
    possible = (~up | free | (cell.target >= hi)) & (up | (cell.target < hi) | ~free)
    return np.where(up, hi, lo), drawn & possible.all(axis=1)


def _first_moved(q: Quantizer, w: np.ndarray) -> tuple[int, int | None]:
    """How many support points of the blocks ``w`` were tried, and the first block one of whose rounds again."""
    checked = 0
    for branch in q.branches(w):
        counts: dict[bytes, int] = {}
        for up in _patterns(branch.cell.lo.shape[1]):
            # In blocks of two or three weights some patterns are the same.
            if up.tobytes() not in counts:
                points, possible = _corner(branch, up)
                if q.scale.couples_blocks and not possible.all():
                    continue
                if (moved := _moved(q, w, points, possible)).any():
                    return checked + int(possible.sum()), int(np.argmax(moved))
                counts[up.tobytes()] = int(possible.sum())
            checked += counts[up.tobytes()]
    return checked, None


def _moved(q: Quantizer, w: np.ndarray, points: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """Which support points of the blocks ``w`` are ``possible`` and round again."""
    if q.scale.couples_blocks:
        return moved_blocks(q, q.unblock(points, w))
    rows, like = points[possible], w[possible]
    out = np.zeros(len(w), dtype=bool)
    if not len(rows):
        return out
    if rows.itemsize * rows.shape[1] == 8:
        # Two float32 numbers, told apart by their bits: blocks of two weights share their few points.
        bits = np.ascontiguousarray(rows).view(np.int64)[:, 0]
        _, places, numbers = np.unique(bits, return_index=True, return_inverse=True)
        out[possible] = moved_blocks(q, q.unblock(rows[places], like[places]))[numbers]
    else:
        out[possible] = moved_blocks(q, q.unblock(rows, like))
    return out


@C4.check("property", "random and directed blocks in every float type")
def float_support_fixed(q: Quantizer) -> Outcome:
    checked = 0
    for dtype in _dtypes(q):
        local, w = random_blocks(q, dtype, "C4")
        count, bad = _first_moved(local, w)
        checked += count
        if bad is not None:
            size = np.abs(local.blocks(w)[0][bad]).max()
            text = f"{dtype} block with largest magnitude {size:.9g}: a support point rounds again"
            return Outcome(1.0, 0.0, checked, text)
    return Outcome(0.0, 0.0, checked, note=", ".join(_dtypes(q)))


@C4.check("exhaustive", "every float16 value beside three leaders")
def float16_support_fixed(q: Quantizer) -> Outcome:
    """Blocks (A, v) with every float16 ``v`` of magnitude up to ``A``; A is the largest float16, 1, and 5 2⁻¹⁶."""
    if q.codebook.is_complex:
        return exact_only(q)
    everything = np.arange(2**16, dtype=np.uint16).view(np.float16)
    local = q.with_partition("block=2") if not q.scale.is_frozen else q.with_partition("block=2").with_scale(2.0**-4)
    checked = 0
    for leader in (65504.0, 1.0, 5 * 2.0**-16):
        values = everything[np.abs(everything) <= np.float16(leader)]
        w = np.stack([np.full_like(values, leader), values], axis=1)
        if q.scale.largest_scale is not None and leader > q.codebook.high * q.scale.largest_scale:
            continue  # Beyond the largest stored scale, where nothing is promised.
        count, bad = _first_moved(local, w)
        checked += count
        if bad is not None:
            return Outcome(1.0, 0.0, checked, f"float16 ({leader:.9g}, {float(values[bad]):.9g})")
    return Outcome(0.0, 0.0, checked)


def exact_only(q: Quantizer) -> Outcome:
    """Complex weights have no 16-bit type in numpy: nothing is checked, and the count says so."""
    return Outcome(0.0, 0.0, 0, note="no 16-bit complex type")


@C3.check("property", "level values of random blocks in every float type")
def float_on_grid(q: Quantizer) -> Outcome:
    """Weights replaced by levels of their own block's lattice, the leader kept: each must have no variance and stay."""
    checked = 0
    for dtype in _dtypes(q):
        local, w = random_blocks(q, dtype, "C3")
        law = local.block_law(w)
        x, branches = law.x, law.branches
        if q.scale.is_drawn or q.scale.couples_blocks:
            # On a drawn scale a block lies on a lattice when its leader does: see the exact check.
            continue
        lattice = branches[0].draw.lattice
        index = Stream(0, f"claims/floats/C3/{dtype}").numpy_generator().integers(0, len(q.codebook.levels), x.shape)
        levels = lattice.level(index)
        cell = lattice.locate(levels)
        moved = (cell.lo != levels) | (cell.hi != levels)
        checked += x.size
        if moved.any():
            i, j = np.argwhere(moved)[0]
            return Outcome(
                1.0,
                0.0,
                checked,
                f"{dtype}: level {levels[i, j]:.9g} of the block with largest magnitude {np.abs(x[i]).max():.9g}",
            )
    return Outcome(0.0, 0.0, checked, note=", ".join(_dtypes(q)))


@C6.check("property", "W₁ across relative steps of 10⁻⁹ in float64")
def float_continuity(q: Quantizer) -> Outcome:
    """As in the exact check, on random float64 blocks: marginal W₁ after one weight moves by 10⁻⁹ of the block's
    magnitude. A continuous law moves by about that times its Lipschitz constant; 10⁻⁵ allows 10⁴. Random blocks rarely
    sit on a breakpoint, so a failure here means jumps are everywhere; a rule that jumps only there passes."""
    local, w = random_blocks(q, "float64", "C6")
    x, dtype = local.blocks(w)
    # Near 1: far below the smallest stored scale, rounding errors of probabilities swamp so small a block.
    top = float(q.codebook.high)
    keep = (np.abs(x).max(axis=1) > 1e-2 * top) & (np.abs(x).max(axis=1) < 1e2 * top)
    if q.scale.couples_blocks:
        keep &= False
    w, x = w[keep][:256], x[keep][:256]
    if not len(w):
        return Outcome(0.0, 0.0, 0, note="one factor per tensor: see the exact check")
    size = np.abs(x).max(axis=1, keepdims=True)
    before = law_of(x, dtype, local.scale, local.codebook)
    largest = 0.0
    for j in (0, 1):
        moved = x.copy()
        moved[:, j] += 1e-9 * size[:, 0]
        after = law_of(moved, dtype, local.scale, local.codebook)
        distance = (_w1(before.branches, after.branches) / size).sum(axis=1)
        largest = max(largest, float(distance.max()))
        if largest > 1e-5:
            i = int(np.argmax(distance))
            return Outcome(
                largest, 0.0, 2 * len(w), f"block with largest magnitude {size[i, 0]:.9g}, weight {j + 1}", 1e-5
            )
    return Outcome(largest, 0.0, 2 * len(w), None, 1e-5)


def _w1(a: list[Branch], b: list[Branch]) -> np.ndarray:
    """Marginal W₁ per weight, ``∫ |F_a - F_b|``, for laws with up to four points each."""
    ends, chances = [], []
    for sign, branches in ((1, a), (-1, b)):
        for draw, cell in branches:
            gap = cell.hi - cell.lo
            p = (cell.target - cell.lo) / np.where(gap > 0, gap, 1)
            weight = sign * (np.ones_like(p) if draw.prob is None else draw.prob + 0 * p)
            ends += [cell.lo, cell.hi]
            chances += [weight * (1 - p), weight * p]
    points, masses = np.stack(ends), np.stack(chances)
    order = np.argsort(points, axis=0, kind="stable")
    points, masses = np.take_along_axis(points, order, 0), np.take_along_axis(masses, order, 0)
    return (np.abs(np.cumsum(masses, axis=0)[:-1]) * np.diff(points, axis=0)).sum(axis=0)
