"""Scales of less weighted squared error than the reference rules give, found from where those are.

A search proposes what could be stored, and measures it as it would be read: every weight at its nearest level. What it
is given is measured first, so the result is never worse. Groups are (groups, weights of a group).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from .base import nearest_level

if TYPE_CHECKING:
    from .base import Fields, StoredType

# Scales that are tried: so many close to what reaches the largest magnitude, and so many below, where weights clip.
_CLOSE, _BELOW = 18, 10
# Shares of a group's range that are cut off at its ends.
_CUTS = tuple(np.float32(share) for share in (0, 0.04, 0.08, 0.13, 0.19))
_ROUNDS = 3


class _Best:
    """The best proposals so far, one per entry: ``error`` (entries,) and what was proposed, arrays (entries, ...)."""

    def __init__(self, error: np.ndarray, *proposal: np.ndarray) -> None:
        self.error = error
        self.proposal = tuple(part.copy() for part in proposal)

    def offer(self, error: np.ndarray, *proposal: np.ndarray) -> None:
        better = error < self.error
        self.error = np.where(better, error, self.error)
        for kept, part in zip(self.proposal, proposal, strict=True):
            np.copyto(kept, part, where=better.reshape(-1, *[1] * (part.ndim - 1)), casting="unsafe")


def _half(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).astype(np.float32)


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _measure(
    units: np.ndarray, x: np.ndarray, weight: np.ndarray, step: np.ndarray, shift: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """``(errors (groups,), levels (groups, weights))`` at the nearest levels of each group."""
    codes, away = nearest_level(units, x, step[:, None], None if shift is None else shift[:, None])
    error = np.einsum("gi,gi,gi->g", away, away, weight, dtype=np.float64)
    error[~np.isfinite(step)] = np.inf
    if shift is not None:
        error[~np.isfinite(shift)] = np.inf
    return np.where(np.isnan(error), np.inf, error), units.astype(np.float32)[codes]


def _sum(*parts: np.ndarray) -> np.ndarray:
    return np.einsum(",".join(["gi"] * len(parts)) + "->g", *parts, dtype=np.float64)


def _ratio(a: np.ndarray, b: np.ndarray, other: np.ndarray) -> np.ndarray:
    """``a / b`` as float32; ``other`` where b is not positive."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), other).astype(np.float32)


# --- one scale -------------------------------------------------------------------------------------------------------


def _steps(
    units: np.ndarray, x: np.ndarray, weight: np.ndarray, start: np.ndarray, stored: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Steps of little error among those that ``stored`` gives, one per group, not worse than ``start``."""
    best = _Best(_measure(units, x, weight, start)[0], start)

    def fitted(levels: np.ndarray, step: np.ndarray) -> np.ndarray:
        """By least squares, for these levels."""
        return stored(_ratio(_sum(weight, x, levels), _sum(weight, levels, levels), step))

    most = np.abs(x).max(axis=1) / np.float32(np.abs(units).max())
    # To clip the largest magnitude by more than about two levels seldom pays, unless its error counts little.
    edge = max(0.5, 1 - 5 / len(units))
    reaches = np.concatenate([np.linspace(1.06, edge, _CLOSE), edge * np.linspace(0.95, 0.15, _BELOW)])
    signs = (1,) if units[0] == -units[-1] else (1, -1)
    for step in (stored(sign * np.float32(reach) * most) for reach in reaches for sign in signs):
        error, levels = _measure(units, x, weight, step)
        best.offer(error, step)
        step = fitted(levels, step)
        best.offer(_measure(units, x, weight, step)[0], step)
    for _ in range(_ROUNDS):
        (step,) = best.proposal
        step = fitted(_measure(units, x, weight, step)[1], step)
        best.offer(_measure(units, x, weight, step)[0], step)
    return best.proposal[0]


def scaled(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
    """One fp16 scale per group."""
    groups, weight = (part.reshape(-1, type.group) for part in (x, importance))
    start = type.scales(fields)[0].reshape(-1)
    step = _steps(type.units, groups, weight, start, _half)
    return type.near(step.reshape(len(x), -1), None)


def ternary(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
    """One fp16 scale per group of levels -1, 0, 1: the best one is the mean of the k largest magnitudes, for some k."""
    groups, weight = (part.reshape(-1, type.group) for part in (x, importance))
    start = type.scales(fields)[0].reshape(-1)
    order = np.argsort(-np.abs(groups), axis=1, kind="stable")
    size, heavy = (np.take_along_axis(part, order, axis=1) for part in (np.abs(groups), weight))
    totals, counts = (np.cumsum(part, axis=1, dtype=np.float64) for part in (heavy * size, heavy))
    score = np.where(counts > 0, totals * totals / np.where(counts > 0, counts, 1), -1)
    place = np.arange(len(groups)), score.argmax(axis=1)
    best = _Best(_measure(type.units, groups, weight, start)[0], start)
    step = _half((totals[place] / np.where(counts[place] > 0, counts[place], 1)).astype(np.float32))
    # Rounding the scale to fp16 moves the best one to a neighbour at most.
    near = (
        np.nextafter(step.astype(np.float16), np.float16(np.inf)),
        np.nextafter(step.astype(np.float16), np.float16(0)),
    )
    for trial in (step, *(part.astype(np.float32) for part in near)):
        best.offer(_measure(type.units, groups, weight, trial)[0], trial)
    return type.near(best.proposal[0].reshape(len(x), -1), None)


def listed(name: str, offsets: Iterable[int], last: int):
    """Scales of a table, the field ``name`` counting in it from 0 to ``last``: the numbers ``offsets`` away."""

    def best(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
        groups, weight = (part.reshape(-1, type.group) for part in (x, importance))
        start = fields[name]

        def measured(number: np.ndarray) -> np.ndarray:
            return _measure(type.units, groups, weight, type.scales({name: number})[0].reshape(-1))[0]

        kept = _Best(measured(start), start.reshape(-1))
        for offset in offsets:
            number = np.clip(start.astype(np.int32) + offset, 0, last).astype(np.uint8)
            kept.offer(measured(number), number.reshape(-1))
        return {name: kept.proposal[0].reshape(start.shape)}

    return best


def nearest_in(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places in the increasing ``table`` of the entries nearest to ``values``, uint8."""
    middles = (table[1:].astype(np.float64) + table[:-1]) / 2
    return np.searchsorted(middles, values, side="right").astype(np.uint8)


# --- a scale and a shift ---------------------------------------------------------------------------------------------


def _lines(
    units: np.ndarray, x: np.ndarray, weight: np.ndarray, start: tuple[np.ndarray, np.ndarray],
    stored: Callable[[np.ndarray], np.ndarray], highest: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Steps and shifts of little error that ``stored`` gives, shifts up to ``highest``; not worse than ``start``."""
    best = _Best(_measure(units, x, weight, *start)[0], *start)
    mass, first = _sum(weight), _sum(weight, x)
    limit = np.float32(highest)

    def fitted(levels: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By least squares, for these levels; the shift once more for the step as it is stored."""
        ones, squares, products = _sum(weight, levels), _sum(weight, levels, levels), _sum(weight, levels, x)
        slope = _ratio(mass * products - first * ones, mass * squares - ones * ones, step)
        free = (first - slope * ones) / np.where(mass > 0, mass, 1)
        slope = stored(np.where(free > highest, _ratio(products - limit * ones, squares, step), slope))
        return slope, stored(
            np.minimum((first - slope * ones) / np.where(mass > 0, mass, 1), highest).astype(np.float32)
        )

    low, high = np.minimum(x.min(axis=1), limit), x.max(axis=1)
    for at_low in _CUTS:
        for at_high in _CUTS:
            shift = low + at_low * (high - low)
            step = (high - low) * (1 - at_low - at_high) / np.float32(units[-1])
            step, shift = fitted(_measure(units, x, weight, step, shift)[1], step)
            best.offer(_measure(units, x, weight, step, shift)[0], step, shift)
    for _ in range(_ROUNDS):
        step, shift = fitted(_measure(units, x, weight, *best.proposal)[1], best.proposal[0])
        best.offer(_measure(units, x, weight, step, shift)[0], step, shift)
    return best.proposal[0], best.proposal[1]


def affine(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
    """An fp16 scale and an fp16 shift per group."""
    groups, weight = (part.reshape(-1, type.group) for part in (x, importance))
    step, shift = type.scales(fields)
    assert shift is not None, "the type has shifts"
    step, shift = _lines(type.units, groups, weight, (step.reshape(-1), shift.reshape(-1)), _half, np.inf)
    return type.near(step.reshape(len(x), -1), shift.reshape(len(x), -1))


# --- scales of scales ------------------------------------------------------------------------------------------------


def _leader(x: np.ndarray) -> np.ndarray:
    """The entry of largest magnitude in each row, with its sign, (rows, 1)."""
    return np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)


def super_scaled(top: int, offset: int):
    """A signed number from ``-top`` to ``top - 1`` per group, times an fp16 scale of the block."""

    def best(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
        groups, weight = (part.reshape(-1, type.group) for part in (x, importance))
        per_block = type.block // type.group

        def measured(d: np.ndarray, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            """Errors of groups, (blocks, groups of a block), and levels; ``d``: (blocks, 1)."""
            error, levels = _measure(type.units, groups, weight, (d * numbers).reshape(-1))
            return error.reshape(-1, per_block), levels

        def rounded(step: np.ndarray, d: np.ndarray) -> np.ndarray:
            return np.nan_to_num(np.clip(np.rint(step / d), -top, top - 1))

        def moved(d: np.ndarray, numbers: np.ndarray) -> np.ndarray:
            """The best of each number and its neighbours."""
            kept = _Best(measured(d, numbers)[0].reshape(-1), numbers.reshape(-1))
            for by in (-1, 1):
                near = np.clip(numbers + np.float32(by), -top, top - 1)
                kept.offer(measured(d, near)[0].reshape(-1), near.reshape(-1))
            return kept.proposal[0].reshape(numbers.shape)

        start = fields["d"].astype(np.float32).reshape(-1, 1)
        numbers = fields["scales"].astype(np.float32).reshape(-1, per_block) - np.float32(offset)
        kept = _Best(measured(start, numbers)[0].sum(axis=1), start, numbers)
        step = _steps(type.units, groups, weight, (start * numbers).reshape(-1), _same).reshape(-1, per_block)
        for part in (-1.0, -0.97, -0.94, (top - 1) / top):
            d = _half(_leader(step) / np.float32(top * part))
            numbers = rounded(step, d)
            kept.offer(measured(d, numbers)[0].sum(axis=1), d, numbers)
        for _ in range(_ROUNDS):
            d, numbers = kept.proposal
            numbers = moved(d, numbers)
            error, levels = measured(d, numbers)
            kept.offer(error.sum(axis=1), d, numbers)
            levels = levels.reshape(len(d), -1) * np.repeat(numbers, type.group, axis=1)
            flat, heavy = groups.reshape(len(d), -1), weight.reshape(len(d), -1)
            d = _half(_ratio(_sum(heavy, flat, levels), _sum(heavy, levels, levels), d[:, 0]))[:, None]
            kept.offer(measured(d, numbers)[0].sum(axis=1), d, numbers)
        d, numbers = kept.proposal
        dtype = fields["scales"].dtype
        return {
            "d": d.reshape(fields["d"].shape).astype("<f2"),
            "scales": (numbers + np.float32(offset)).astype(dtype).reshape(fields["scales"].shape),
        }

    return best


def super_affine(top: int):
    """Numbers from 0 to ``top`` for scale and minimum of each group, times two fp16 scales of the block."""

    def best(type: StoredType, x: np.ndarray, importance: np.ndarray, fields: Fields) -> Fields:
        return _SuperAffine(type, x, importance, top).found(fields)

    return best


class _SuperAffine:
    """The search for some rows. ``d``, ``dmin``: (blocks, 1); ``scales``, ``mins``: (blocks, groups of a block)."""

    def __init__(self, type: StoredType, x: np.ndarray, importance: np.ndarray, top: int) -> None:
        self.type, self.top = type, top
        self.groups, self.weight = (part.reshape(-1, type.group) for part in (x, importance))
        self.per_block = type.block // type.group

    def measured(self, d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray):
        """Errors of groups, (blocks, groups of a block), and levels."""
        step, shift = (d * scales).reshape(-1), -(dmin * mins).reshape(-1)
        error, levels = _measure(self.type.units, self.groups, self.weight, step, shift)
        return error.reshape(-1, self.per_block), levels

    def rounded(self, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return np.nan_to_num(np.clip(np.rint(x / scale), 0, self.top))

    def moved(self, d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray):
        """Numbers of the least error among each pair and the eight pairs around it."""
        kept = _Best(self.measured(d, dmin, scales, mins)[0].reshape(-1), scales.reshape(-1), mins.reshape(-1))
        for by in ((a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b):
            near = tuple(np.clip(n + np.float32(k), 0, self.top) for n, k in zip((scales, mins), by, strict=True))
            kept.offer(self.measured(d, dmin, *near)[0].reshape(-1), *(part.reshape(-1) for part in near))
        return tuple(part.reshape(scales.shape) for part in kept.proposal)

    def fitted(self, levels: np.ndarray, d: np.ndarray, dmin: np.ndarray, scales: np.ndarray, mins: np.ndarray):
        """The two scales of every block by least squares, for these levels and numbers."""
        flat, heavy = (part.reshape(len(d), -1) for part in (self.groups, self.weight))
        a = levels.reshape(len(d), -1) * np.repeat(scales, self.type.group, axis=1)
        b = -np.repeat(mins, self.type.group, axis=1)
        aa, ab, bb = _sum(heavy, a, a), _sum(heavy, a, b), _sum(heavy, b, b)
        ax, bx = _sum(heavy, a, flat), _sum(heavy, b, flat)
        divisor = aa * bb - ab * ab
        single = _ratio(ax, aa, d[:, 0])
        slope = _half(np.where(bb > 0, _ratio(ax * bb - bx * ab, divisor, d[:, 0]), single))
        low = _half(_ratio(bx - slope * ab, bb, dmin[:, 0]))
        return slope[:, None], low[:, None]

    def found(self, fields: Fields) -> Fields:
        d, dmin = (fields[name].astype(np.float32).reshape(-1, 1) for name in ("d", "dmin"))
        scales, mins = (fields[name].astype(np.float32).reshape(-1, self.per_block) for name in ("scales", "mins"))
        kept = _Best(self.measured(d, dmin, scales, mins)[0].sum(axis=1), d, dmin, scales, mins)
        start = (d * scales).reshape(-1), -(dmin * mins).reshape(-1)
        step, shift = (
            part.reshape(-1, self.per_block)
            for part in _lines(self.type.units, self.groups, self.weight, start, _same, 0.0)
        )
        for share in (1.0, 0.96, 0.9):
            for of_min in (1.0, 0.94):
                d = _half(step.max(axis=1, keepdims=True) / np.float32(self.top * share))
                dmin = _half((-shift).max(axis=1, keepdims=True) / np.float32(self.top * of_min))
                proposal = d, dmin, self.rounded(step, d), self.rounded(-shift, dmin)
                kept.offer(self.measured(*proposal)[0].sum(axis=1), *proposal)
        for _ in range(_ROUNDS - 1):
            d, dmin, scales, mins = kept.proposal
            scales, mins = self.moved(d, dmin, scales, mins)
            error, levels = self.measured(d, dmin, scales, mins)
            kept.offer(error.sum(axis=1), d, dmin, scales, mins)
            d, dmin = self.fitted(levels, d, dmin, scales, mins)
            kept.offer(self.measured(d, dmin, scales, mins)[0].sum(axis=1), d, dmin, scales, mins)
        numbers = dict(zip(("d", "dmin", "scales", "mins"), kept.proposal, strict=True))
        return {name: numbers[name].reshape(part.shape).astype(part.dtype) for name, part in fields.items()}
