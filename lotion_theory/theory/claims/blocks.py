"""Small exact blocks on which laws are checked in rational arithmetic, simplest first."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from ..._arrays import is_exact
from ...formats.law import BlockLaw, Branch
from ...formats.quantizer import Quantizer
from .rational import rational

_SIZES = (1, 2, 3)
_MOST = {1: 60, 2: 260, 3: 160}


def _complexity(v: Fraction) -> tuple[int, int]:
    return (v.denominator.bit_length() + abs(v.numerator).bit_length(), abs(v.numerator))


def magnitudes(q: Quantizer) -> list[Fraction]:
    """Directed probe magnitudes of a format, simplest first: levels, midpoints, clip edges, scale breakpoints.

    Around the top level ``c`` the list goes past it on both sides, through the values where a stored scale changes:
    ``c (1 + k/16)`` meets the grid of E4M3-like scales and its midpoints, ``c (1 + 2^-11)`` a midpoint of fp16 scales.
    """
    levels = [c for c in q.codebook.levels if c > 0]
    top = q.codebook.high
    edge = max(top, -q.codebook.low)
    picked = {Fraction(0), Fraction(1, 2), Fraction(1)}
    for group in (levels[:3], levels[-3:]):
        picked.update(group)
        picked.update((a + b) / 2 for a, b in itertools.pairwise(group))
    picked.update({top / 2, edge, (top + edge) / 2})
    for k in (1, 2, 4):
        picked.add(top * (1 + Fraction(k, 16)))
    picked.update({top * (1 + Fraction(1, 2**11)), top * (1 + Fraction(3, 2**12))})
    for point in (top, edge, top * Fraction(9, 8), Fraction(2) ** (top.numerator // top.denominator).bit_length()):
        picked.update({point, point + Fraction(1, 4096), point - Fraction(1, 4096)})
    return sorted((v for v in picked if v >= 0), key=_complexity)


@lru_cache(maxsize=256)
def _probes(q: Quantizer, size: int) -> np.ndarray:
    if q.codebook.is_complex:
        return _complex_probes(size)
    values = magnitudes(q)
    signed = sorted({s * v for v in values for s in (1, -1)}, key=lambda v: (_complexity(v), v < 0))
    found: list[tuple[Fraction, ...]] = []
    if size == 1:
        found = [(v,) for v in signed]
    else:
        # Pairs and triples in order of total complexity; a fixed stride bounds the count and still samples the tail.
        pool = signed[:24]
        bits = [_complexity(v)[0] for v in pool]
        order = sorted(itertools.product(range(len(pool)), repeat=size), key=lambda t: sum(bits[i] for i in t))
        everything = [tuple(pool[i] for i in t) for t in order]
        head = everything[: _MOST[size] // 2]
        tail = everything[_MOST[size] // 2 :]
        found = head + tail[:: max(1, len(tail) // (_MOST[size] - len(head)))]
        if size == 2:
            # Every directed magnitude beside a simple partner: scale breakpoints act on the *other* weight.
            partners = (Fraction(1), Fraction(1, 2), Fraction(-1))
            found += [(v, p) for v in values for p in partners]
            found += [(-v, p) for v in values for p in partners]
            found += [(v, -v) for v in values] + [(v + Fraction(1, 4096), -v) for v in values]
    out = np.empty((len(found), size), dtype=object)
    for i, t in enumerate(found):
        out[i] = [rational(v) for v in t]
    out.flags.writeable = False
    return out


def _complex_probes(size: int) -> np.ndarray:
    # Pythagorean pairs keep every modulus rational.
    points = [(0, 0), (1, 0), (0, -1), (3, 4), (4, -3), (-5, 12), (8, 15), (-7, -24), (6, 0), (0, 10)]
    combos = list(itertools.islice(itertools.product(points, repeat=size), 100))
    out = np.empty((len(combos), size, 2), dtype=object)
    for i, t in enumerate(combos):
        for j, (re, im) in enumerate(t):
            out[i, j, 0], out[i, j, 1] = rational(re), rational(im)
    return out


def probes(q: Quantizer, size: int) -> np.ndarray:
    """Blocks of ``size`` weights, (n, size) of Rationals (complex: (n, size, 2)), roughly simplest first, read-only."""
    return _probes(q, size)


@dataclass(eq=False)
class Batch:
    """Probe blocks with their law: ``w`` (n, size), its quantizer with one block per row, one block per row."""

    w: np.ndarray
    q: Quantizer
    law: BlockLaw

    @property
    def x(self) -> np.ndarray:
        """Real coordinates, (n, coordinates)."""
        return self.law.x

    @property
    def branches(self) -> list[Branch]:
        """The lattices, with the cells of :attr:`x`."""
        return self.law.branches

    @cached_property
    def supports(self) -> tuple[np.ndarray, np.ndarray]:
        """Every support point of every block: ``(points, probs)``, (k, n, coordinates) and (k, n); some probs are 0."""
        points, probs = [], []
        for draw, cell in self.branches:
            weight = rational(1) + 0 * cell.lo[:, 0] if draw.prob is None else draw.prob[:, 0]
            gap = cell.hi - cell.lo
            p = (cell.target - cell.lo) / (gap + (gap == 0))
            chances = [weight]
            for down, up in zip((1 - p).T, p.T, strict=True):
                chances = [chance * step for chance in chances for step in (down, up)]
            ups = itertools.product((False, True), repeat=p.shape[1])
            points += [np.where(up, cell.hi, cell.lo) for up in ups]
            probs += chances
        return np.stack(points), np.stack(probs)

    @cached_property
    def unfixed(self) -> np.ndarray:
        """Which support points, (k, n), are reached and are not fixed points of RR, their own scale included."""
        points, probs = self.supports
        reached = np.asarray(probs > 0, dtype=bool)
        if self.q.scale.couples_blocks:
            # The rows share a scale: a support point is one tensor of as many rows, and moves as a whole.
            moved = np.array([moved_blocks(self.q, tensor).any() for tensor in points])
            return reached & moved[:, None]
        # Many blocks share their support points.
        rows = points[reached]
        first: dict[tuple, int] = {}
        numbers = [first.setdefault(key(row), len(first)) for row in rows]
        _, places = np.unique(numbers, return_index=True)
        out = np.zeros(reached.shape, dtype=bool)
        out[reached] = moved_blocks(self.q, real_blocks(self.q, rows[places]))[numbers]
        return out


def key(row: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Exact values as what sets and dictionaries can hold; hashing the numbers themselves takes longer."""
    return tuple([value.as_integer_ratio() for value in row.tolist()])


def moved_blocks(q: Quantizer, w: np.ndarray) -> np.ndarray:
    """Which blocks (rows) of ``w`` are not fixed points of RR with their own scale; exact or float."""
    if not (is_exact(w) or q.scale.is_drawn or q.codebook.is_complex):
        lo, hi = q.bracket(w)
        return ((lo != w) | (hi != w)).any(axis=1)
    law = q.block_law(w)
    x = law.x
    out = np.zeros(len(x), dtype=bool)
    for draw, cell in law.branches:
        possible = np.ones(len(x), dtype=bool) if draw.prob is None else np.asarray(draw.prob[:, 0] > 0, dtype=bool)
        out |= possible & np.asarray(((cell.lo != x) | (cell.hi != x)).any(axis=1), dtype=bool)
    return out


_shared: dict[Quantizer, list[Batch]] | None = None


@contextlib.contextmanager
def shared_batches() -> Iterator[None]:
    """In this block :func:`batches` are made once per format, with what their checks have in common."""
    global _shared
    before, _shared = _shared, {}
    try:
        yield
    finally:
        _shared = before


def batches(q: Quantizer) -> list[Batch]:
    """All probe blocks of a format with their laws; where a factor is shared by the tensor, two blocks at a time."""
    if _shared is None:
        return _batches(q)
    if q not in _shared:
        _shared[q] = _batches(q)
    return _shared[q]


def _batches(q: Quantizer) -> list[Batch]:
    out = []
    for size in _SIZES:
        w = probes(q, size)
        per_row = q.with_partition(f"block={size}") if not q.scale.is_frozen else frozen(q, size)
        groups = [w[i : i + 2] for i in range(0, len(w) - 1, 1 if size == 1 else 3)] if q.scale.couples_blocks else [w]
        for group in groups:
            out.append(Batch(group, per_row, per_row.block_law(group)))
    return out


def frozen(q: Quantizer, size: int | None = None) -> Quantizer:
    """The codebook on a fixed lattice of unit scale, one block per row of ``size`` weights (or one block)."""
    base = q.with_partition(f"block={size}" if size else "tensor")
    return base.with_scale(Fraction(1))


def real_blocks(q: Quantizer, x: np.ndarray) -> np.ndarray:
    """Weights whose real coordinates are ``x`` (n, coordinates): the identity for real formats."""
    if not q.codebook.is_complex:
        return x
    pairs = x.reshape(len(x), -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return np.stack(((a + b) / 2, (a - b) / 2), axis=-1)


def describe_case(batch: Batch, i: int) -> str:
    """Block ``i`` of a batch as text, with the blocks that share its tensor where those matter."""
    if not batch.q.scale.couples_blocks:
        return describe(batch.w[i])
    return "blocks " + " and ".join(describe(w) for w in batch.w) + f", block {i + 1}"


def describe(w: np.ndarray) -> str:
    """A block as text; complex weights as ``3+4i``."""
    from ._base import show

    if w.ndim == 2:
        parts = [show(re) + ("+" if im >= 0 else "-") + show(abs(im)) + "i" for re, im in w.tolist()]
        return parts[0] if len(parts) == 1 else "(" + ", ".join(parts) + ")"
    return show(w)
