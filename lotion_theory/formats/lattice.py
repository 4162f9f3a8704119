"""Lattices: a codebook placed on the real line by one or two anchors per block.

Levels are never ``scale * code`` where the scale is a real number: the anchors are the extreme values themselves and a
level is ``anchor * (code / top code)``. The largest weight of a block is then a level exactly, in every float type, and
each support point of randomized rounding is found again on its own lattice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np

from .. import kernels
from .._arrays import (
    Array,
    choose,
    detach,
    dtype_name,
    holds_seldom,
    is_exact,
    is_opaque,
    is_unread,
    largest,
    may_hold,
    namespace,
    one_way,
    store,
    store_level,
)
from .._tables import beside, constants, first_index, floor_index, line, take, values_at
from ..functions import number
from .codebooks import Codebook, common_gap


@dataclass
class Cell:
    """The two adjacent levels around every weight of a block array, all of shape (blocks, weights per block).

    ``target``: the weight, clipped to the lattice's range. A weight on a level has ``lo == hi == target``. ``places``
    gives positions of ``lo`` and ``hi`` in the codebook, ``parity`` of positions whether ties go to their levels;
    both are called when asked for. ``huge``, (blocks, 1): whether distances of levels may overflow.
    """

    target: Array
    lo: Array
    hi: Array
    places: Callable[[], tuple[Array, Array]]
    parity: Callable[[Array], Array]
    huge: Array

    @cached_property
    def _indices(self) -> tuple[Array, Array]:
        return self.places()

    @property
    def index_lo(self) -> Array:
        """Positions of ``lo`` in the codebook."""
        return self._indices[0]

    @property
    def index_hi(self) -> Array:
        """Positions of ``hi`` in the codebook."""
        return self._indices[1]

    @property
    def hi_even(self) -> Array:
        """Whether ties go to ``hi``."""
        return self.parity(self.index_hi)


@dataclass
class Lattice:
    """Base of the forms. ``top`` and ``bottom`` are anchors of shape (blocks, 1); ``kind`` is the storage type."""

    book: Codebook
    kind: str
    top: Array
    bottom: Array | None = None

    def position(self, x: Array) -> Array:
        """Approximate place of ``x`` in units of :attr:`units`."""
        raise NotImplementedError

    def level(self, index: Array) -> Array:
        """Level number ``index``, rounded to the storage type."""
        raise NotImplementedError

    def coefficients(self, index: Array) -> tuple[Array, Array | None]:
        """Derivatives of ``level(index)`` in ``top`` and in ``bottom``."""
        raise NotImplementedError

    @property
    def units(self) -> tuple[Fraction, ...]:
        """The codebook in the units of :meth:`position`."""
        raise NotImplementedError

    def even(self, index: Array) -> Array:
        """Whether ties go to level ``index``."""
        return take(constants(self.book.parity, detach(self.top)), index) > 0

    def locate(self, x: Array) -> Cell:
        """The cell of every entry of ``x``, shape (blocks, n). Entries beyond the range are clipped to its end."""
        xp = namespace(x)
        last = len(self.book.levels) - 1
        plain = detach(x)
        if not is_unread(x):
            near = self.detached()._beside(plain)
            first = self.level(near)
            # The guessed level bounds the cell on one side, its neighbour on the side of x on the other.
            up = plain >= detach(first)
            other = xp.clip(near + one_way(up, near), 0, last)
            second = self.level(other)
            lo, hi = namespace(x).minimum(first, second), namespace(x).maximum(first, second)
            above, below = plain > detach(hi), plain < detach(lo)
        if is_unread(x) or (may_hold(above | below) and bool(((above | below) & (near != other)).any())):
            # Levels may be so close that rounding them to the storage type moves them past the guess.
            near = self._searched(plain)
            other, up = xp.clip(near + 1, 0, last), near == near
            lo, hi = self.level(near), self.level(other)
            above, below = plain > detach(hi), plain < detach(lo)
        target = x
        if may_hold(above | below):
            target = choose(above, hi, choose(below, lo, x))
        at_hi = plain >= detach(hi)
        lo = choose(at_hi, hi, lo)
        at_lo = plain <= detach(lo)
        hi = choose(at_lo, lo, hi)

        def places() -> tuple[Array, Array]:
            index_lo, index_hi = choose(up, near, other), choose(up, other, near)
            index_lo = choose(at_hi, index_hi, index_lo)
            return floor_index(index_lo), floor_index(choose(at_lo, index_lo, index_hi))

        return Cell(target, lo, hi, places, self.even, self._huge())

    def _huge(self) -> Array:
        """Whether the distance of two levels may overflow, per block: where one of the end levels is large."""
        frozen = self.detached()
        limit = largest(dtype_name(frozen.top))
        if limit is None:
            return frozen.top != frozen.top
        first = first_index(frozen.top)
        ends = frozen.level(first), frozen.level(first + (len(self.book.levels) - 1))
        return (abs(ends[0]) > limit / 4) | (abs(ends[1]) > limit / 4)

    def _searched(self, x: Array) -> Array:
        """The highest level that is not above ``x``, or the lowest one, by bisection: right however close levels are,
        and without a condition on values."""
        frozen, where = self.detached(), namespace(x).where
        last = len(self.book.levels) - 1
        index = first_index(x)
        step = 1 << (last.bit_length() - 1)
        while step:
            higher = index + step
            fits = namespace(x).clip(higher, 0, last)
            index = where((higher <= last) & (x >= frozen.level(fits)), higher, index)
            step //= 2
        return index

    def guess(self, x: Array) -> Array:
        """Number of a level beside ``x``, from below or above; of the end for what is beyond it."""
        return floor_index(self._beside(x))

    def _beside(self, x: Array) -> Array:
        """The same as :func:`.._arrays.values_at` takes it: for numpy whole numbers may stay floats."""
        units = self.units
        last = len(units) - 1
        place = self.position(x)
        step = common_gap(units)
        if step is None:
            return beside(units, place)
        # Nearest to x: half a cell leaves room for rounding errors.
        place = place * number(1 / step, x) + number(Fraction(1, 2) - units[0] / step, x)
        place = namespace(x).clip(place, number(0, x), number(last, x))
        # Numbers of levels in floats save numpy most of the time that look-ups take.
        on_line = isinstance(x, np.ndarray) and not is_exact(x) and line(units) is not None
        return np.floor(place) if on_line and line(self.book.levels) is not None else floor_index(place)

    def of(self, blocks: slice) -> Lattice:
        """The same for some of the blocks."""
        return type(self)(self.book, self.kind, self.top[blocks], None if self.bottom is None else self.bottom[blocks])

    def detached(self) -> Lattice:
        return type(self)(self.book, self.kind, detach(self.top), None if self.bottom is None else detach(self.bottom))


def _divisor(x: Array) -> Array:
    """``x`` with zeros replaced by one: an all-zero block has all its levels at 0."""
    return x + (x == 0)


def _share(x: Array, anchor: Array) -> Array:
    """``x`` over the anchor of its block, within two roundings."""
    divisor = _divisor(anchor)
    if is_exact(x):
        return x / divisor
    if is_unread(x):
        return x / divisor
    with np.errstate(over="ignore"):
        inverse = 1 / divisor
    # One division per block; the reciprocal of a subnormal number overflows.
    return x * inverse if bool(namespace(x).isfinite(inverse).all()) else x / divisor


class SpanLattice(Lattice):
    """Level of code ``c``: ``top * (c / c_max)`` for ``c >= 0``, ``bottom * (c / c_min)`` below; ``bottom`` < 0.

    ``bottom=None`` means ``-top * |c_min| / c_max``, the lattice of a single real scale ``top / c_max``.
    """

    @property
    def units(self) -> tuple[Fraction, ...]:
        return self.book.units if self.bottom is None else self.book.sided_units

    def position(self, x: Array) -> Array:
        if self.bottom is None:
            return _share(x, self.top)
        return namespace(x).where(x >= 0, _share(x, self.top), -_share(x, self.bottom))

    def level(self, index: Array) -> Array:
        unit = values_at(self.units, index, self.top)
        if self.bottom is None and self.book.low >= -self.book.high and self.kind == dtype_name(self.top):
            return self.top * unit  # within the range of the float type, as the top is
        if self.bottom is None:
            return store_level(self.top * unit, self.kind)
        return store_level(namespace(unit).where(unit >= 0, self.top * unit, self.bottom * -unit), self.kind)

    def coefficients(self, index: Array) -> tuple[Array, Array | None]:
        unit = values_at(self.units, index, self.top)
        if self.bottom is None:
            return unit, None
        where = namespace(unit).where
        return where(unit >= 0, unit, 0 * unit), where(unit >= 0, 0 * unit, -unit)


class ScaledLattice(Lattice):
    """Level of code ``c``: ``scale * (c - offset)``; ``top`` holds the scale, ``bottom`` the integer offset (or None).

    For scales stored in a small float format the product is exact. Levels beyond the float range are clipped to it.
    """

    @property
    def units(self) -> tuple[Fraction, ...]:
        return self.book.levels

    def position(self, x: Array) -> Array:
        place = _share(x, self.top)
        return place if self.bottom is None else place + self.bottom

    def level(self, index: Array) -> Array:
        return store_level(self.top * self.coefficients(index)[0], self.kind)

    def coefficients(self, index: Array) -> tuple[Array, Array | None]:
        code = values_at(self.book.levels, index, self.top)
        return (code if self.bottom is None else code - self.bottom), None

    def even(self, index: Array) -> Array:
        even = super().even(index)
        if self.bottom is None:
            return even
        # Ties go to even multiples of the scale, not to even codes: the zero point is an integer shift.
        return even ^ ((self.bottom % 2) != 0)


class ShiftedLattice(Lattice):
    """Level of code ``c``: ``bottom + top * c``, with real ``top >= 0`` and ``bottom`` (None: 0).

    Product and sum are rounded to the type of ``top``, which is the storage type.
    """

    @property
    def units(self) -> tuple[Fraction, ...]:
        return self.book.levels

    def position(self, x: Array) -> Array:
        return _share(x if self.bottom is None else x - self.bottom, self.top)

    def level(self, index: Array) -> Array:
        step = self.top * values_at(self.units, index, self.top)
        return step if self.bottom is None else self.bottom + step


class AffineLattice(Lattice):
    """Level of code ``q``: ``bottom + (top - bottom) * q / q_max``, the end levels being the anchors exactly."""

    bottom: Array

    @property
    def units(self) -> tuple[Fraction, ...]:
        return self.book.shares

    def _halved(self) -> tuple[Array, Array, Array]:
        # top - bottom may overflow where both are huge: there, compute on halves (exact) and double at the end.
        xp = namespace(self.top)
        one = 0 * detach(self.top) + 1
        factor = xp.where(detach(xp.maximum(abs(self.top), abs(self.bottom))) > 1, 2 * one, one)
        return self.top / factor, self.bottom / factor, factor

    def position(self, x: Array) -> Array:
        top, bottom, factor = self._halved()
        return _share(x / factor - bottom, top - bottom)

    def level(self, index: Array) -> Array:
        unit = values_at(self.units, index, self.top)
        top, bottom, factor = self._halved()
        inner = store((bottom + (top - bottom) * unit) * factor, self.kind)
        where = namespace(unit).where
        return where(unit == 1, self.top + 0 * unit, where(unit == 0, self.bottom + 0 * unit, inner))

    def coefficients(self, index: Array) -> tuple[Array, Array | None]:
        unit = values_at(self.units, index, self.top)
        return unit, 1 - unit


class OffsetLattice(Lattice):
    """Level of code ``c``: ``top * c + bottom``, scale and offset being stored numbers, as runtimes compute it."""

    bottom: Array

    @property
    def units(self) -> tuple[Fraction, ...]:
        return self.book.levels

    def position(self, x: Array) -> Array:
        return _share(x - self.bottom, self.top)

    def level(self, index: Array) -> Array:
        return store_level(self.top * values_at(self.units, index, self.top) + self.bottom, self.kind)

    def coefficients(self, index: Array) -> tuple[Array, Array | None]:
        code = values_at(self.units, index, self.top)
        return code, 0 * code + 1


class MirroredLattice(ScaledLattice):
    """A scaled lattice whose scale may be negative: the codebook is then read upside down."""

    def locate(self, x: Array) -> Cell:
        xp = namespace(x)
        flipped = detach(self.top) < 0
        one = 0 * detach(self.top) + 1
        sign = xp.where(flipped, -one, one)
        upright = ScaledLattice(self.book, self.kind, self.top * sign).locate(x * sign)
        lo, hi = upright.lo * sign, upright.hi * sign

        def places() -> tuple[Array, Array]:
            swap = flipped & (upright.index_lo >= 0)
            first, second = upright.index_lo, upright.index_hi
            return choose(swap, second, first), choose(swap, first, second)

        return Cell(
            upright.target * sign, choose(flipped, hi, lo), choose(flipped, lo, hi), places, self.even, upright.huge
        )


def _comparable(cell: Cell) -> tuple[Array, Array, Array]:
    """``(target, lo, hi)``, quartered where levels are so large that ``hi - lo`` could overflow; decisions do not
    change."""
    if not holds_seldom(cell.huge):
        return cell.target, cell.lo, cell.hi
    limit = largest(dtype_name(cell.lo))
    assert limit is not None, "exact levels are never huge"
    big = (abs(detach(cell.lo)) > limit / 4) | (abs(detach(cell.hi)) > limit / 4)
    where = namespace(cell.lo).where
    return tuple(where(big, part / 4, part) for part in (cell.target, cell.lo, cell.hi))


def prob_up(cell: Cell) -> Array:
    """Probability of going up for every weight in its cell."""
    return kernels.prob_up(*_comparable(cell))


def pick(cell: Cell, u: Array) -> Array:
    """Randomized rounding of every weight in its cell from uniforms ``u``."""
    # Plus zero: what is chosen is never -0, as with ``kernels.select``.
    picked = choose(kernels.goes_up(*_comparable(cell), u), cell.hi, cell.lo) + number(0, u)
    return namespace(u).where(u == u, picked, math.nan) if is_unread(u) else picked  # refused uniforms


def nearer_hi(cell: Cell) -> Array:
    """Where a weight goes to ``hi``: nearest level, ties to even, decided as exact arithmetic would."""
    parts = _comparable(cell)
    if is_opaque(parts[0]):
        nearer, tie = kernels.compare_distances(*parts)
        return nearer | (tie & cell.hi_even)
    below, above = kernels.distances(*parts)
    up = below > above
    # Few weights are so near to the middle of a cell that rounded distances do not decide: they alone are compared
    # exactly.
    unsure = (below == above) & (parts[1] < parts[2])
    if bool(unsure.any()):
        nearer, tie = kernels.compare_distances(*(part[unsure] for part in parts))
        up[unsure] = (nearer | (tie & cell.hi_even[unsure])) if bool(tie.any()) else nearer
    return up


def move_to_nearest(cell: Cell) -> Array:
    """Round to nearest, as :func:`nearer_hi` says."""
    return choose(nearer_hi(cell), cell.hi, cell.lo)
