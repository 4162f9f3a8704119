"""Nearest levels of columns and positions between levels, at the speed of a few passes over an array."""

from __future__ import annotations

import numpy as np

from .._arrays import Array, copied, dtype_name, is_torch, namespace, precision
from .._tables import at_most
from .grid import Grid


class Columns:
    """A grid's columns, to be rounded one after the other: arrays are (n, rows), so that a column is contiguous.

    A column costs about ten operations on its rows. Where rounding errors of these could decide, a few weights in a
    hundred thousand, :meth:`Grid.nearest` does.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid, units = grid, grid.units
        self.step = turned(grid.step)
        self.shift = None if grid.shift is None else turned(grid.shift)
        self.line = on_line(units)
        self._inverse, reach = _inverse(self.step, self.shift)
        self._last, self._table = len(units) - 1, grid.table
        eps = 2.0 ** (1 - precision(dtype_name(grid.step)))
        if self.line is None:
            xp = namespace(self._table)
            beyond = xp.full_like(self._table[:1], float("inf"))
            middles = (self._table[1:] + self._table[:-1]) / 2
            self._middles, self._bounds = middles, xp.concat([-beyond, middles, beyond])
            size, self._first = 2 * float(abs(units).max()), 0.0
        else:
            first, scale = self.line
            self._inverse = self._inverse * scale
            self._first, size, reach = float(first), 2.0 * (abs(first) + len(units)), reach * scale
        # Errors of the position and of the levels, both rounded: see the sums in `_near`, in units of eps.
        self._unsure = [4 * eps * (size + r) for r in reach]

    def near(self, j: int, x: Array) -> Array:
        """A level of column ``j`` for every entry of ``x`` (rows,): the nearest one, up to rounding errors."""
        return self._level(j, self._number(self.position(j, x))[0])

    def nearest(self, j: int, x: Array) -> Array:
        """The nearest level, as :meth:`Grid.nearest`."""
        number, room = self._number(self.position(j, x))
        out = self._level(j, number)
        unsure = room < self._unsure[j]
        if bool(unsure.any()):
            rows = namespace(x).nonzero(unsure)[0]
            grid = self.grid.rows(rows).columns(slice(j, j + 1))
            out[rows] = grid.nearest(x[rows][:, None])[:, 0]
        return out

    def position(self, j: int, x: Array) -> Array:
        """Position of ``x``: from 0 at the first level to K - 1 at the last one where units are on a line, else in
        units."""
        place = (x if self.shift is None else x - self.shift[j]) * self._inverse[j]
        if self._first:
            place -= self._first
        return place

    def _number(self, place: Array) -> tuple[Array, Array]:
        """Number of the level near a position, and how far the position is from where the next level begins."""
        if self.line is not None:
            inside = place.clip(0, self._last)
            number = inside.round()
            inside -= number
            return number, 0.5 - abs(inside)
        number = at_most(self._middles, place)
        return number, namespace(place).minimum(place - self._bounds[number], self._bounds[number + 1] - place)

    def _level(self, j: int, number: Array) -> Array:
        if self.line is None:
            unit = self._table[number]
        else:
            unit = number + self._first if self._first else number
            if self.line[1] != 1:
                unit = unit / self.line[1]
        return self.placed(j, unit)

    def placed(self, j: int, unit: Array) -> Array:
        """What ``unit`` (rows,) is in column ``j``: shift plus step times it."""
        step = self.step[j] * unit
        return step if self.shift is None else self.shift[j] + step


class Between:
    """Positions between levels of a grid: the number of the level below, and the share of the way to the next one.

    Up to rounding errors, and clipped to the ends. ``low`` is the level below, ``gap`` the signed distance of the next.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid, units = grid, grid.units
        self._inverse, _ = _inverse(grid.step, grid.shift)
        self._table = grid.table
        self.line = on_line(units)
        self._last = len(units) - 2

    def moved(self, x: Array, share: float, cut: float) -> Array:
        """``x`` (rows, n), whose position between two levels is replaced by ``clip(share · position - cut, 0, 1)``."""
        grid = self.grid
        place = (x if grid.shift is None else x - grid.shift) * self._inverse
        if self.line is not None:
            first, scale = self.line
            if scale != 1:
                place *= scale
            number = (place - first if first else place).clip(0, self._last)
            number = namespace(x).floor(number)
            if first:
                number += first
            place -= number
            place *= share
            place -= cut
            unit = place.clip(0, 1)
            unit += number
            if scale != 1:
                unit /= scale
        else:
            number = at_most(self._table[1:-1], place)
            low = self._table[number]
            gap = self._table[number + 1] - low
            unit = ((place - low) / gap * share - cut).clip(0, 1)
            unit *= gap
            unit += low
        unit *= grid.step
        if grid.shift is not None:
            unit += grid.shift
        return unit


def turned(x: Array) -> Array:
    """The transpose of ``x``, contiguous, in memory of its own."""
    return copied(x.T).contiguous() if is_torch(x) else np.array(x.T, order="C")


def on_line(units: np.ndarray) -> tuple[int, int] | None:
    """``(first, scale)``, integers with ``units[k] = (k + first) / scale`` rounded; None where there are none."""
    scale = round((len(units) - 1) / float(units[-1] - units[0]))
    if not 1 <= scale < 2**20:
        return None
    first = round(float(units[0]) * scale)
    return (first, scale) if np.array_equal((np.arange(len(units)) + first) / scale, units) else None


def _inverse(step: Array, shift: Array | None) -> tuple[Array, list[float]]:
    """``1 / step``, 0 where that overflows, and for each first index the largest ``|shift / step|``, infinite where it
    overflows."""
    xp = namespace(step)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / step
    whole = xp.isfinite(inverse)
    inverse = xp.where(whole, inverse, 0 * step)
    reach = xp.max(abs(inverse if shift is None else inverse * shift), axis=1)
    reach = 0 * reach if shift is None else reach
    fails = xp.any(~whole & (step != 0), axis=1)  # of step 0 all levels are one
    return inverse, [float("inf") if bad else value for bad, value in zip(fails.tolist(), reach.tolist(), strict=True)]
