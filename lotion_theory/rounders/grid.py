"""Frozen lattices: every weight has levels of its own, on which rounding schemes place it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from .._arrays import Array, detach, dtype_name, is_torch, namespace
from ..formats.codebooks import Codebook
from ..formats.lattice import Cell, ShiftedLattice, move_to_nearest, nearer_hi

ROOM = 2**15
"""Weights whose cells are looked up together on a CPU."""


def kind_of(x: Array) -> str:
    """Type, library and place of an array, in words."""
    return f"{dtype_name(x)} of " + (f"torch on {x.device}" if is_torch(x) else "numpy")


@lru_cache(maxsize=64)
def _book(units: bytes, ties: int) -> Codebook:
    """The ``units`` of a grid, float64, as a codebook."""
    levels = tuple(Fraction(float(v)) for v in np.frombuffer(units))
    return Codebook("grid", levels, tuple(k % 2 == ties for k in range(len(levels))), 0, "levels of a grid")


@dataclass(frozen=True, eq=False)
class Grid:
    """A frozen lattice: level ``k`` of weight ``(r, j)`` is ``shift[r, j] + step[r, j] * units[k]``.

    ``step``: (rows, n), a numpy array or a torch tensor of float32 or float64; of any sign, and all levels of a weight
    with step 0 are equal. ``units``: (K,), increasing, at least two; they need not be evenly spaced. ``shift``: as
    ``step``, or None for 0. Levels are what this formula gives in the type of ``step``: product and sum are rounded.

    ``ties``, 0 or 1: a weight in the middle of two levels goes to the one whose position k has this remainder modulo 2.
    By default that is the level an even number of places from unit 0, which is the even one of integer units; where 0
    is not among the units, an even position.

    Raises ValueError for units that do not increase and for shapes, types and libraries that do not fit.
    """

    step: Array
    units: np.ndarray
    shift: Array | None = None
    ties: int | None = None

    def __post_init__(self) -> None:
        units = np.array(self.units, dtype=np.float64)
        if units.ndim != 1 or len(units) < 2 or not np.isfinite(units).all() or (np.diff(units) <= 0).any():
            raise ValueError("units must be a 1-D array of at least two finite numbers, in increasing order")
        units.flags.writeable = False
        object.__setattr__(self, "units", units)
        object.__setattr__(self, "step", detach(self.step))
        object.__setattr__(self, "shift", None if self.shift is None else detach(self.shift))
        if len(self.step.shape) != 2:
            raise ValueError(f"step has shape {tuple(self.step.shape)}, expected (rows, n)")
        if self.shift is not None:
            shift, step = (f"{kind_of(x)} {tuple(x.shape)}" for x in (self.shift, self.step))
            if shift != step:
                raise ValueError(f"shift is {shift} and step {step}; they must be alike")
        if self.ties not in (None, 0, 1):
            raise ValueError(f"ties={self.ties}: valid: 0, 1 or None")
        if self.ties is None:
            object.__setattr__(self, "ties", int(np.flatnonzero(units == 0)[0]) % 2 if (units == 0).any() else 0)

    @classmethod
    def balanced(cls, top: Array, book: Codebook) -> Grid:
        """The lattice with highest levels ``top`` (rows, n) of a codebook from -c to c, with its rule for ties."""
        return cls(top, np.array([float(v) for v in book.units]), None, 0 if book.even[0] else 1)

    def rows(self, part: slice | Array) -> Grid:
        """The lattices of some of the rows."""
        return self.carried(lambda x: x[part])

    def columns(self, part: slice | Array) -> Grid:
        """The lattices of some of the columns, or of all in another order."""
        return self.carried(lambda x: x[:, part])

    def carried(self, change: Callable[[Array], Array]) -> Grid:
        """The lattice with ``change`` made of step and shift."""
        return replace(self, step=change(self.step), shift=None if self.shift is None else change(self.shift))

    def at(self, index: Array) -> Array:
        """Levels number ``index`` (rows, n), integers."""
        return self._place(self.step, self.table[index], self.shift)

    @cached_property
    def levels(self) -> Array:
        """All levels, (rows, n, K), in the order of ``units``, so decreasing where the step is negative."""
        return self._place(self.step[..., None], self.table, None if self.shift is None else self.shift[..., None])

    @property
    def ends(self) -> tuple[Array, Array]:
        """Lowest and highest level of every weight, (rows, n)."""
        first, last = (self._place(self.step, self.table[k], self.shift) for k in (0, -1))
        if self._flipped is None:
            return first, last
        where = namespace(first).where
        return where(self._flipped, last, first), where(self._flipped, first, last)

    @property
    def gap(self) -> Array:
        """Mean distance of neighbouring levels of every weight, (rows, n)."""
        return abs(self.step) * float(self.units[-1] - self.units[0]) / (len(self.units) - 1)

    def index(self, x: Array) -> tuple[Array, Array]:
        """Numbers of the levels around ``x`` (rows, n), equal on a level and beyond the ends."""
        return self._in_runs(x, lambda grid, cell: grid._sorted(cell.index_lo, cell.index_hi))

    def bracket(self, x: Array) -> tuple[Array, Array]:
        """Levels around ``x``, equal on a level and beyond the ends."""
        return self._in_runs(x, lambda grid, cell: grid._sorted(grid._turned(cell.lo), grid._turned(cell.hi)))

    def nearest(self, x: Array) -> Array:
        """The nearest level, decided as exact arithmetic would; ``x`` beyond the ends goes to the end."""
        return self._in_runs(x, lambda grid, cell: (grid._turned(move_to_nearest(cell)),))[0]

    def nearest_index(self, x: Array) -> Array:
        """Number of the nearest level; of lattice points their codes, positions in ``units``."""
        choose = namespace(x).where
        return self._in_runs(x, lambda grid, cell: (choose(nearer_hi(cell), cell.index_hi, cell.index_lo),))[0]

    def _in_runs(self, x: Array, read: Callable[[Grid, Cell], tuple[Array, ...]]) -> tuple[Array, ...]:
        """What ``read`` makes of the cell of every entry of ``x`` (among negated levels where the step is negative),
        rows being taken in runs that fit a CPU's cache."""
        run = max(1, ROOM // x.shape[1])
        if is_torch(x) or len(x) <= run:
            cell = self._lattice.locate(self._turned(x))
            return tuple(part.reshape(x.shape) for part in read(self, cell))
        parts = [slice(start, start + run) for start in range(0, len(x), run)]
        found = [self.rows(part)._in_runs(x[part], read) for part in parts]
        return tuple(np.concatenate(pieces) for pieces in zip(*found, strict=True))

    @staticmethod
    def _place(step: Array, unit: Array, shift: Array | None) -> Array:
        return step * unit if shift is None else shift + step * unit

    @cached_property
    def table(self) -> Array:
        """The units in the library, type and place of ``step``."""
        if is_torch(self.step):
            return self.step.new_tensor(self.units)
        return self.units.astype(self.step.dtype)

    @cached_property
    def _flipped(self) -> Array | None:
        """Where the step is negative: there cells are looked up among the negated levels. None where it nowhere is."""
        negative = self.step < 0
        return negative if bool(negative.any()) else None

    @cached_property
    def _lattice(self) -> ShiftedLattice:
        shift = None if self.shift is None else self._turned(self.shift)
        return ShiftedLattice(_book(self.units.tobytes(), self.ties), dtype_name(self.step), abs(self.step), shift)

    def _turned(self, x: Array) -> Array:
        """``x``, negated where the step is negative."""
        return x if self._flipped is None else namespace(x).where(self._flipped, -x, x)

    def _sorted(self, lo: Array, hi: Array) -> tuple[Array, Array]:
        """``lo`` and ``hi`` exchanged where the step is negative."""
        if self._flipped is None:
            return lo, hi
        where = namespace(lo).where
        return where(self._flipped, hi, lo), where(self._flipped, lo, hi)


def assembled(pieces: Sequence[tuple[slice, slice, Grid]], like: Array) -> Grid:
    """One lattice of the shape of ``like`` (rows, n) from lattices of its parts: rows, columns and grid of each.

    Raises ValueError where units or ties differ.
    """
    first = pieces[0][2]
    empty = namespace(like).empty_like
    step, shift = empty(like), None if first.shift is None else empty(like)
    for rows, columns, grid in pieces:
        if (
            not np.array_equal(grid.units, first.units)
            or grid.ties != first.ties
            or (grid.shift is None) != (shift is None)
        ):
            raise ValueError("lattices of parts differ in units, ties or in having a shift; they cannot be one")
        step[rows, columns] = grid.step
        if shift is not None:
            shift[rows, columns] = grid.shift
    return Grid(step, first.units, shift, first.ties)
