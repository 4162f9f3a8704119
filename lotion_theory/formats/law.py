"""The law of ``RR`` on blocks: which lattices may be drawn, the cell of every weight there, and what follows from them.

Arrays are (blocks, weights per block), those of a whole block (blocks, 1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from .. import kernels
from .._arrays import Array, block_max, choose, detach, is_unread, namespace
from . import drawn
from .codebooks import Codebook
from .lattice import Cell, Lattice, move_to_nearest, pick
from .scale_protocol import Draw, ScaleRule


@dataclass(eq=False)
class Branch:
    """One lattice a block may be rounded on. ``draw``: it; ``x``, (blocks, weights per block): what is rounded."""

    draw: Draw
    x: Array

    @property
    def prob(self) -> Array | None:
        """(blocks, 1), None for certainty."""
        return self.draw.prob

    @cached_property
    def cell(self) -> Cell:
        """Where the weights lie."""
        with np.errstate(over="ignore"):
            return self.draw.lattice.locate(self.x)

    def __iter__(self) -> Iterator[Any]:
        yield from (self.draw, self.cell)


@dataclass(frozen=True, eq=False)
class BlockLaw:
    """The law of ``RR`` on the blocks ``x``; obtained by ``quantizer.block_law(w)`` or :func:`law_of`.

    ``x``: real coordinates of the weights, in the type that computations run in. ``kind``: the storage type, to which
    levels are rounded. ``branches``: one for ordinary scale rules, two for SR scales, the second being the coarser
    lattice. Results have the shape of ``x``; ``quantizer.unblock`` gives them that of the weights.
    """

    x: Array
    kind: str
    branches: list[Branch]

    def mean(self) -> Array:
        """``E[RR(x)]``."""
        if len(self.branches) == 1:
            return self.branches[0].cell.target
        return sum(b.prob * b.cell.target for b in self.branches)

    def variance(self) -> Array:
        """Variance of ``RR(x)``, over the drawn lattice as well."""
        cells = [b.cell for b in self.branches]
        if len(cells) == 1:
            return kernels.variance(cells[0].target, *cells[0].around)
        mean = self.mean()
        parts = [(b.prob, b.cell.target, *b.cell.around, b.cell.target - mean) for b in self.branches]
        return drawn.variance([drawn.Part(*part) for part in parts])

    def slopes(self, anchors: int) -> tuple[Array, ...]:
        """Of one lattice: derivatives of :meth:`variance` in each weight with the levels held, and through the levels
        beside it in the top and, where ``anchors`` is 2, in the bottom. Clipped weights have none."""
        (branch,) = self.branches
        cell = branch.cell
        at = cell.target, cell.lo, cell.hi
        found = [kernels.variance_dw(*at)]
        if anchors:
            low, high = (branch.draw.lattice.coefficients(index) for index in (cell.index_lo, cell.index_hi))
            found += [kernels.variance_danchor(*at, low[k], high[k]) for k in range(anchors)]
        return tuple(found)

    def pick(self, u: Array, v: Array = None) -> Array:
        """Support points from uniforms ``u``, (..., blocks, n), and for two branches ``v``, (..., blocks, 1)."""
        points = pick(self.branches[0].cell, u)
        if len(self.branches) == 1:
            return points
        points = choose(v < self.branches[1].prob, pick(self.branches[1].cell, u), points)
        return namespace(v).where(v == v, points, math.nan) if is_unread(v) else points  # refused uniforms

    def likelier(self) -> Array:
        """Of two branches, whether the second is at least as probable, (blocks, 1)."""
        return detach(self.branches[1].prob) * 2 >= 1

    def cast_cells(self) -> list[Cell]:
        """Per branch, the cells in which rounding to nearest decides.

        On the coarse lattice of an SR scale these are cells of the weights, not of their conditional means, but for the
        leader, which goes to ``T⁺``: the block then finds this lattice again.
        """
        return [b.cell if b.draw.mixture is None else _coarse_cell(b.draw, self.x) for b in self.branches]

    def nearest(self) -> Array:
        """Round to nearest, ties to even; of two branches on the likelier lattice."""
        points = [move_to_nearest(cell) for cell in self.cast_cells()]
        return points[0] if len(points) == 1 else choose(self.likelier(), points[1], points[0])


def law_of(x: Array, kind: str, scale: ScaleRule, book: Codebook) -> BlockLaw:
    """The law of the blocks ``x`` (blocks, weights per block), checked and of the working type, stored as ``kind``."""
    return law_on(x, kind, draws_of(x, kind, scale, book))


def draws_of(x: Array, kind: str, scale: ScaleRule, book: Codebook) -> list[Draw]:
    """The lattices of the blocks ``x``; of blocks of NaN, which stand for refused ones in an unread tensor, NaN."""
    # Levels beyond the float range are clipped to it, so an overflow on the way is no news.
    with np.errstate(over="ignore"):
        draws = scale.draws(x, book, kind)
    return [replace(d, lattice=_refused(d.lattice, x)) for d in draws] if is_unread(x) else draws


def _refused(lattice: Lattice, x: Array) -> Lattice:
    where, refused = namespace(x).where, (x != x)[:, :1]
    top, bottom = (None if a is None else where(refused, math.nan, a) for a in (lattice.top, lattice.bottom))
    return replace(lattice, top=top, bottom=bottom)


# Weights whose arrays, some ten of them at a time, stay in the second-level cache of a core.
PIECE = 1 << 15


def pieces(x: Array, kind: str, scale: ScaleRule, book: Codebook) -> Iterator[tuple[tuple[slice, slice], BlockLaw]]:
    """The law of :func:`law_of` part by part: which blocks, and which of their weights, each time."""
    draws = draws_of(x, kind, scale, book)
    for draw in draws:
        draw.lattice.look()
    blocks, n = x.shape
    whole = any(d.mixture is not None for d in draws)  # rounds by the largest weight of a block
    rows, columns = max(1, PIECE // n), n if whole else PIECE
    for i in range(0, blocks, rows):
        some = [d.of(slice(i, i + rows)) for d in draws] if rows < blocks else draws
        for j in range(0, n, columns):
            place = slice(i, i + rows), slice(j, j + columns)
            yield place, law_on(x[place], kind, some)


def law_on(x: Array, kind: str, draws: list[Draw]) -> BlockLaw:
    """The law of the blocks ``x`` on the lattices that ``draws`` gives."""
    branches = []
    with np.errstate(over="ignore"):
        for draw in draws:
            y = x
            if draw.mixture is not None:
                threshold, p, _ = draw.mixture
                moved = drawn.conditional_mean(x, draw.mixture)
                y = choose((abs(detach(x)) > threshold) & (p < 1), moved, x)
            branches.append(Branch(draw, y))
    return BlockLaw(x, kind, branches)


def _coarse_cell(draw: Draw, x: Array) -> Cell:
    assert draw.mixture is not None, "the coarse lattice of an SR scale has a mixture"
    threshold, p, reach = draw.mixture
    size = abs(x)
    leads = (size == block_max(size)) & (size > threshold) & (p < 1)
    peak = choose(x < 0, -reach, reach)
    with np.errstate(over="ignore"):
        return draw.lattice.locate(choose(leads, peak, x))
