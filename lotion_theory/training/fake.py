"""Levels around each weight for formats with an absmax scale, in torch operations that ``torch.compile`` takes whole.

The result is that of :class:`lotion_theory.Quantizer`, bit for bit (a zero may differ in sign), for blocks whose
largest magnitude is zero or a number away from the ends of the float range. Where the quantizer guesses a cell,
compares and corrects, here one level next to the weight is found and then its neighbour on the weight's side, which
needs neither a check of the data nor a branch. NaN and infinite weights are not refused: they give NaN.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from .. import kernels
from .._arrays import largest, rounded_bits
from ..formats.codebooks import Codebook
from ..formats.compiled import plan
from ..formats.quantizer import Quantizer

_REALS = {torch.float64: "float64", torch.float32: "float32", torch.float16: "float32", torch.bfloat16: "float32"}


class Sides(NamedTuple):
    """Two adjacent levels with the weight between them, in no order, and both equal to it where it is a level.

    ``first`` is the nearer one, but perhaps not for weights within a few ulp of the middle. ``unit_*``: the levels
    where the highest is 1. ``place_*``: which levels they are, as whole numbers: codes of integers, else indices.
    """

    first: Tensor
    second: Tensor
    unit_first: Tensor
    unit_second: Tensor
    place_first: Tensor
    place_second: Tensor


def working_type(dtype: torch.dtype) -> torch.dtype:
    """The type computed in for weights stored as ``dtype``: float32 for 16-bit types. ValueError for other types."""
    if dtype not in _REALS:
        raise ValueError(f"weights of type {dtype}; valid: {', '.join(str(t) for t in _REALS)}")
    return getattr(torch, _REALS[dtype])


def supported(quantizer: Quantizer) -> bool:
    """Whether :class:`Levels` serves this format: an absmax scale (or a gauge equal to it) and levels from -c to c."""
    return quantizer.is_absmax


@lru_cache(maxsize=256)
def levels_of(book: Codebook, dtype: torch.dtype, device: torch.device) -> Levels:
    """The :class:`Levels` of a codebook for weights stored as ``dtype`` on a device; made once."""
    return Levels(book, dtype, device)


class Levels:
    """The levels of ``book`` on lattices whose highest level is given, for weights stored as ``dtype``.

    Weights come as ``x`` (blocks, n) in the working type and the highest level of each block as ``top`` (blocks, 1).
    Weights beyond ``top`` have its level on both sides: learned and statistical scales clip.
    """

    def __init__(self, book: Codebook, dtype: torch.dtype, device: torch.device) -> None:
        real = working_type(dtype)
        known = plan(book, _REALS[dtype])
        table = torch.tensor(known.units, dtype=real)
        self.narrow = None if dtype == real else dtype
        self.limit = largest(str(dtype).removeprefix("torch.")) or 0.0
        # Symmetric integers are computed; other levels are looked up, from the bin of width 1 / bins they lie in.
        self.high = float(known.high)
        self.step_high, self.step_low = float(known.step_high), float(known.step_low)
        # A tensor: divided by a number, CUDA multiplies by its reciprocal.
        self.divisor = torch.tensor(self.high, dtype=real, device=device)
        self.units = table.to(device)
        self.bins, self.of_bin = _bins(table)
        self.of_bin, self.middles = self.of_bin.to(device), ((table[1:] + table[:-1]) / 2).to(device)
        self._units_or_nan, self._bins_or_nan = _with_nan(self.units), _with_nan(self.of_bin)
        # Of two neighbouring levels exactly one is even: so are all codes, or indices, of one parity.
        self.even = bool(self.high) or book.even[0]
        self.lowest, self.highest = (-self.high, self.high) if self.high else (0.0, float(len(book.levels) - 1))
        # Distance from a code up to which its level is surely the nearest one.
        self.decided = float(known.decided)

    def unit(self, place: Tensor) -> Tensor:
        """The levels numbered ``place`` (blocks, n) where the highest level is 1."""
        if self.high and torch.compiler.is_compiling():
            # Compiled for a GPU, a division may be off by an ulp.
            return place * self.step_high + place * self.step_low
        if self.high:
            return place / self.divisor
        return _look_up(self._units_or_nan, place)

    def level(self, top: Tensor, unit: Tensor) -> Tensor:
        """``top * unit``, rounded to the type the weights are stored in."""
        level = top * unit
        return level if self.narrow is None else to_storage(level.clamp(-self.limit, self.limit), self.narrow)

    def sides(self, x: Tensor, top: Tensor, clips: bool = True) -> Sides:
        """The levels beside each weight. Nothing here is meant to be differentiated. ``clips``: whether weights may lie
        beyond ``top``."""
        share = top + (top == 0)
        if self.high:
            place = (x / share).mul_(self.high).round_()
            place = place.clamp_(self.lowest, self.highest) if clips else place
        else:
            place = self._looked_up(x / share)
        unit = self.unit(place)
        first = self.level(top, unit)
        # The neighbour on the weight's side; the level itself for a weight on it.
        other = (x - first).sign_().add_(place)
        other = other.clamp_(self.lowest, self.highest) if clips else other
        unit_other = self.unit(other)
        return Sides(first, self.level(top, unit_other), unit, unit_other, place, other)

    def _up_even(self, sides: Sides) -> Tensor:
        """Whether ties go to the upper level."""
        half = torch.maximum(sides.place_first, sides.place_second) * 0.5
        return (half == half.round()) == self.even

    def unit_of(self, near: Tensor, x: Tensor, top: Tensor) -> Tensor:
        """The levels ``near`` of :meth:`nearest` where the highest level is 1."""
        if self.high:
            return self.unit((near / (top + (top == 0)) * self.high).round())
        sides = self.sides(x, top)
        return torch.where(near == sides.first, sides.unit_first, sides.unit_second)

    def nearest(self, x: Tensor, top: Tensor, clips: bool = True) -> Tensor:
        """The nearest level of each weight (RTN, ties to even). ``clips`` as for :meth:`sides`."""
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            return self._nearest_exactly(x, top)
        # Without a compiler each operation is a pass over memory. Few weights are so near to the middle of a cell that
        # the distances do not decide: they alone are compared exactly.
        if self.high and self.narrow is None:
            scaled = (x / (top + (top == 0))).mul_(self.high)
            place = scaled.round()
            near = self.level(top, self.unit(place.clamp(self.lowest, self.highest) if clips else place))
            unsure = scaled.sub_(place).abs_() > self.decided
        else:
            sides = self.sides(x, top, clips)
            here, there = (x - sides.first).abs_(), (sides.second - x).abs_()
            near = torch.where(there < here, sides.second, sides.first)
            unsure = (here == there) & (here > 0)
        if bool(unsure.any()):
            index = unsure.reshape(-1).nonzero().squeeze(1)
            rows = torch.div(index, x.shape[1], rounding_mode="floor")
            part, high = x.reshape(-1)[index][:, None], top.expand(x.shape[0], 1)[rows]
            near.view(-1)[index] = self._nearest_exactly(part, high)[:, 0]
        return near.add_(0.0)  # makes -0 a +0

    def _nearest_exactly(self, x: Tensor, top: Tensor) -> Tensor:
        """The nearest levels, decided as exact arithmetic would."""
        sides = self.sides(x, top)
        lo, hi = ordered(sides)
        nearer, tie = kernels.compare_distances(clipped(x, lo, hi), lo, hi)
        return torch.where(nearer | (tie & self._up_even(sides)), hi, lo)

    def _looked_up(self, share: Tensor) -> Tensor:
        """The number of a level next to each weight, given as a share of the highest level."""
        if not self.bins:
            place = torch.bucketize(share, self.middles, out_int32=True).to(share.dtype)
            return torch.where(share.isnan(), share, place)
        return _look_up(self._bins_or_nan, (share * self.bins).round_().clamp_(-self.bins, self.bins).add_(self.bins))


def _bins(units: Tensor) -> tuple[float, Tensor]:
    """``(bins, table)``: in each of the ``2 bins + 1`` bins around multiples of ``1 / bins``, the number of the level
    nearest to its center. Four bins to the smallest gap: a bin then has at most one level in it, so that its nearest
    one is beside every weight of the bin. ``bins = 0`` where the table would be large."""
    bins = int((4 / (units[1:] - units[:-1]).min()).ceil())
    if bins > 1 << 12:
        return 0.0, units.new_zeros(1)
    centers = torch.arange(-bins, bins + 1, dtype=units.dtype) / bins
    return float(bins), (centers[:, None] - units).abs().argmin(dim=1).to(units.dtype)


def _with_nan(table: Tensor) -> Tensor:
    """``table`` with a NaN after its last entry, as :func:`_look_up` takes it."""
    return torch.cat([table, table.new_full((1,), float("nan"))])


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    """``table[index]``, and NaN, the last entry, for an index that is NaN: as an integer that could be anything."""
    known = index.nan_to_num(nan=float(len(table) - 1)).reshape(-1)
    return torch.index_select(table, 0, known.to(torch.int32)).view_as(index)


def ordered(sides: Sides) -> tuple[Tensor, Tensor]:
    """``(lo, hi)`` of :meth:`lotion_theory.Quantizer.bracket`."""
    return torch.minimum(sides.first, sides.second), torch.maximum(sides.first, sides.second)


def ordered_units(sides: Sides) -> tuple[Tensor, Tensor]:
    """``(unit_lo, unit_hi)``: the same levels where the highest is 1."""
    return torch.minimum(sides.unit_first, sides.unit_second), torch.maximum(sides.unit_first, sides.unit_second)


def clipped(x: Tensor, lo: Tensor, hi: Tensor) -> Tensor:
    """The weights, those beyond the range at its ends."""
    return torch.minimum(torch.maximum(x, lo), hi)


def to_storage(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 ``x`` rounded to a 16-bit type, ties to even, and back."""
    if not torch.compiler.is_compiling():
        return x.to(dtype).to(x.dtype)
    return rounded_bits(x, str(dtype).removeprefix("torch."))
