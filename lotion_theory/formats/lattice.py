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
from functools import cached_property, lru_cache

import numpy as np

from .. import kernels
from .._arrays import (
    Array,
    choose,
    clip,
    detach,
    dtype_name,
    holds_seldom,
    is_exact,
    is_opaque,
    is_torch,
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

    ``target``: the weight, clipped to the lattice's range. ``below <= target <= above``: two neighbouring levels; of a
    clipped weight both are that at the end. ``places`` gives positions of ``below`` and ``above`` in the codebook,
    ``parity`` of positions whether ties go to their levels; both are called when asked for. ``huge``, (blocks, 1):
    whether distances of levels may overflow; None where none does.
    """

    target: Array
    below: Array
    above: Array
    places: Callable[[], tuple[Array, Array]]
    parity: Callable[[Array], Array]
    huge: Array | None

    @cached_property
    def lo(self) -> Array:
        """The lower level; a weight on a level has ``lo == hi == target``."""
        return choose(self._on_above, self.above, self.below)

    @cached_property
    def hi(self) -> Array:
        """The upper level."""
        return choose(self._on_below, self.lo, self.above)

    @cached_property
    def _on_above(self) -> Array:
        return detach(self.target) >= detach(self.above)

    @cached_property
    def _on_below(self) -> Array:
        return detach(self.target) <= detach(self.lo)

    @cached_property
    def _places(self) -> tuple[Array, Array]:
        return self.places()

    @cached_property
    def index_lo(self) -> Array:
        """Positions of ``lo`` in the codebook."""
        return floor_index(choose(self._on_above, self._places[1], self._places[0]))

    @cached_property
    def index_hi(self) -> Array:
        """Positions of ``hi`` in the codebook."""
        return floor_index(choose(self._on_below, self.index_lo, floor_index(self._places[1])))

    @property
    def hi_even(self) -> Array:
        """Whether ties go to ``hi``."""
        return self.parity(self.index_hi)

    @property
    def around(self) -> tuple[Array, Array]:
        """Two levels around each weight for what vanishes on either and is not differentiated: the variance."""
        followed = is_torch(self.target) and (self.target.requires_grad or self.above.requires_grad)
        if followed or (self.huge is not None and holds_seldom(self.huge)):
            return self.lo, self.hi
        return self.below, self.above

    @property
    def above_even(self) -> Array:
        """Whether ties go to ``above``."""
        return self.parity(floor_index(self._places[1]))


@dataclass
class Lattice:
    """Base of the forms. ``top`` and ``bottom`` are anchors of shape (blocks, 1); ``kind`` is the storage type."""

    book: Codebook
    kind: str
    top: Array
    bottom: Array | None = None

    # Whether all levels are known to be far from the ends of the float range.
    modest = False

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
            other = clip(near + one_way(up, near), 0, last)
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

        def places() -> tuple[Array, Array]:
            return choose(up, near, other), choose(up, other, near)

        return Cell(target, lo, hi, places, self.even, None if self.modest else self._huge())

    def look(self) -> None:
        """Find out whether all levels are far from the ends of the float range, for this and its parts."""
        limit = largest(self.kind)
        if limit is not None and not is_opaque(self.top):
            low, high = self._ends()
            self.modest = bool(((abs(low) <= limit / 4) & (abs(high) <= limit / 4)).all())

    def _ends(self) -> tuple[Array, Array]:
        """The lowest and the highest level of each block."""
        frozen = self.detached()
        first = first_index(frozen.top)
        with np.errstate(over="ignore"):
            return frozen.level(first), frozen.level(first + (len(self.book.levels) - 1))

    def _huge(self) -> Array:
        """Whether the distance of two levels may overflow, per block: where one of the end levels is large."""
        top = detach(self.top)
        limit = largest(dtype_name(top))
        if limit is None:
            return top != top
        low, high = self._ends()
        return (abs(low) > limit / 4) | (abs(high) > limit / 4)

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
        place = self.position(x)
        even = _even_steps(units)
        if even is None:
            return beside(units, place)
        # Nearest to x: half a cell leaves room for rounding errors.
        place = place * number(even[0], x) + number(even[1], x)
        place = clip(place, number(0, x), number(len(units) - 1, x))
        # Numbers of levels in floats save numpy most of the time that look-ups take.
        on_line = isinstance(x, np.ndarray) and not is_exact(x) and line(units) is not None
        return np.floor(place) if on_line and line(self.book.levels) is not None else floor_index(place)

    def of(self, blocks: slice) -> Lattice:
        """The same for some of the blocks."""
        return self._with(self.top[blocks], None if self.bottom is None else self.bottom[blocks])

    def detached(self) -> Lattice:
        return self._with(detach(self.top), None if self.bottom is None else detach(self.bottom))

    def _with(self, top: Array, bottom: Array | None) -> Lattice:
        new = type(self)(self.book, self.kind, top, bottom)
        new.modest = self.modest
        return new

    def _stored(self, level: Array) -> Array:
        """Levels as they are stored, within the range of their type."""
        return store(level, self.kind) if self.modest else store_level(level, self.kind)


@lru_cache(maxsize=512)
def _even_steps(units: tuple[Fraction, ...]) -> tuple[Fraction, Fraction] | None:
    """``(a, b)``: the nearest of evenly spaced ``units`` to ``x`` is number floor(a x + b); None where they are not."""
    step = common_gap(units)
    return None if step is None else (1 / step, Fraction(1, 2) - units[0] / step)


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
        return choose(x >= 0, _share(x, self.top), -_share(x, self.bottom))

    def level(self, index: Array) -> Array:
        unit = values_at(self.units, index, self.top)
        if self.bottom is None and self.book.is_top_heavy and self.kind == dtype_name(self.top):
            return self.top * unit  # within the range of the float type, as the top is
        if self.bottom is None:
            return self._stored(self.top * unit)
        return self._stored(choose(unit >= 0, self.top * unit, self.bottom * -unit))

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
        return self._stored(self.top * self.coefficients(index)[0])

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
        straight = ScaledLattice(self.book, self.kind, self.top * sign)
        straight.modest = self.modest
        upright = straight.locate(x * sign)
        low, high = upright.below * sign, upright.above * sign

        def places() -> tuple[Array, Array]:
            first, second = map(floor_index, upright.places())
            swap = flipped & (first >= 0)
            return choose(swap, second, first), choose(swap, first, second)

        low, high = choose(flipped, high, low), choose(flipped, low, high)
        return Cell(upright.target * sign, low, high, places, self.even, upright.huge)


def _comparable(cell: Cell, lo: Array, hi: Array) -> tuple[Array, Array, Array]:
    """``(target, lo, hi)``, quartered where levels are so large that ``hi - lo`` could overflow; decisions do not
    change."""
    if cell.huge is None or not holds_seldom(cell.huge):
        return cell.target, lo, hi
    limit = largest(dtype_name(lo))
    assert limit is not None, "exact levels are never huge"
    big = (abs(detach(lo)) > limit / 4) | (abs(detach(hi)) > limit / 4)
    where = namespace(lo).where
    return tuple(where(big, part / 4, part) for part in (cell.target, lo, hi))


def prob_up(cell: Cell) -> Array:
    """Probability of going up for every weight in its cell."""
    return kernels.prob_up(*_comparable(cell, cell.lo, cell.hi))


def pick(cell: Cell, u: Array) -> Array:
    """Randomized rounding of every weight in its cell from uniforms ``u``."""
    # A weight on the upper level stays, whatever the rounding of a product with the gap would do.
    up = kernels.goes_up(*_comparable(cell, cell.lo, cell.above), u)
    # Plus zero: what is chosen is never -0, as with ``kernels.select``.
    picked = choose(up, cell.above, cell.lo) + number(0, u)
    return namespace(u).where(u == u, picked, math.nan) if is_unread(u) else picked  # refused uniforms


def nearer_hi(cell: Cell) -> Array:
    """Where a weight goes to the upper level: nearest level, ties to even, decided as exact arithmetic would."""
    parts = _comparable(cell, cell.below, cell.above)
    if is_opaque(parts[0]):
        nearer, tie = kernels.compare_distances(*parts)
        return nearer | (tie & cell.above_even)
    below, above = kernels.distances(*parts)
    up = below > above
    # Few weights are so near to the middle of a cell that rounded distances do not decide: they alone are compared
    # exactly.
    unsure = (below == above) & (parts[1] < parts[2])
    if bool(unsure.any()):
        nearer, tie = kernels.compare_distances(*(part[unsure] for part in parts))
        up[unsure] = (nearer | (tie & cell.above_even[unsure])) if bool(tie.any()) else nearer
    return up


def move_to_nearest(cell: Cell) -> Array:
    """Round to nearest, as :func:`nearer_hi` says."""
    return choose(nearer_hi(cell), cell.above, cell.below)
