"""Super-blocks of 256 weights with quantized scales of groups: Q2_K to Q6_K.

Q3_K and Q6_K have a signed scale per 16 weights, a multiple of one fp16 scale; Q2_K, Q4_K and Q5_K a scale and a
minimum to be subtracted, not negative where their fp16 scales are not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import search
from .base import Fields, Scales, StoredType
from .layout import Bits, Field, half, planes, whole
from .rules import (
    ONE,
    ZERO,
    affine_scale,
    by_group,
    descended_scale,
    emphasised,
    leader,
    mean_square,
    positive_scale,
    signed_scale,
    total,
)

BLOCK = 256
Own = Callable[[np.ndarray, np.ndarray | None], Fields]


def _half(x: np.ndarray, rows: int) -> np.ndarray:
    return x.reshape(rows, -1, 1).astype("<f2")


def _numbers(x: np.ndarray, rows: int) -> np.ndarray:
    """(numbers of a block, blocks) as a field (rows, blocks, numbers)."""
    return np.ascontiguousarray(x.T).reshape(rows, -1, len(x))


def _spread_weights(x: np.ndarray, importance: np.ndarray, group: int, times: int) -> np.ndarray:
    """What errors count, with the mean square of each super-block, (weights of a group, groups)."""
    blocks = x.reshape(-1, BLOCK)
    return by_group(emphasised(blocks, importance.reshape(-1, BLOCK), mean_square(blocks, times)), group)


def _of_blocks(x: np.ndarray, per_block: int) -> np.ndarray:
    """Numbers of groups, (groups,), as (groups of a block, blocks)."""
    return np.ascontiguousarray(x.reshape(-1, per_block).T)


# --- signed scales of scales -----------------------------------------------------------------------------------------


def _scaled(offset: int) -> Callable[[Fields], Scales]:
    def scales(fields: Fields) -> Scales:
        numbers = fields["scales"].astype(np.float32) - np.float32(offset)
        step = fields["d"].astype(np.float32) * numbers
        return step.reshape(len(step), -1), None

    return scales


def _by_largest(scale: np.ndarray, rows: int, top: int, offset: int, dtype: str) -> Fields:
    """The scale of largest magnitude at ``-top``, the others rounded; ``scale`` is (groups of a block, blocks)."""
    lead = leader(scale)
    inverse = np.float32(-top) / lead
    idle = ~(np.abs(lead) > 0)
    numbers = np.clip(np.rint(inverse * scale), -top, top - 1) + offset
    d = np.where(idle, ZERO, ONE / inverse)
    return {"d": _half(d, rows), "scales": _numbers(np.where(idle, 0, numbers), rows).astype(dtype)}


def _own_q3(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    groups = by_group(x, 16)
    if importance is None:
        return _by_largest(_of_blocks(descended_scale(groups, 4), 16), len(x), 32, 32, "u1")
    weight = _spread_weights(x, importance, 16, 2)
    scale, _ = signed_scale(groups, 4, weight)
    d, numbers = signed_scale(_of_blocks(scale, 16), 32, _of_blocks(total(weight), 16))
    return {"d": _half(d, len(x)), "scales": _numbers(numbers + 32, len(x)).astype("u1")}


def _own_q6(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    groups = by_group(x, 16)
    weight = groups * groups if importance is None else by_group(importance, 16)
    scale, _ = signed_scale(groups, 32, weight)
    blocks = _of_blocks(scale, 16)
    idle = np.abs(leader(blocks)) < np.float32(1e-15)
    return _by_largest(np.where(idle, ZERO, blocks), len(x), 128, 0, "i1")


def _near_scaled(top: int, offset: int, dtype: str):
    def near(step: np.ndarray, shift: np.ndarray | None) -> Fields:
        return _by_largest(_of_blocks(step, 16), len(step), top, offset, dtype)

    return near


# --- scales and minima -----------------------------------------------------------------------------------------------


def _affine(fields: Fields) -> Scales:
    d, dmin = fields["d"].astype(np.float32), fields["dmin"].astype(np.float32)
    step, shift = d * fields["scales"].astype(np.float32), -(dmin * fields["mins"].astype(np.float32))
    return step.reshape(len(step), -1), shift.reshape(len(shift), -1)


def _below_largest(x: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """``(scale, numbers)`` with the largest of the (groups of a block, blocks) at ``top``."""
    most = np.maximum(x.max(axis=0), ZERO)
    numbers = np.clip(np.rint(np.where(most > 0, np.float32(top) / most, ZERO) * x), 0, top)
    return most / np.float32(top), numbers


def _stored_affine(rows: int, scale: tuple[np.ndarray, np.ndarray], minimum: tuple[np.ndarray, np.ndarray]) -> Fields:
    return {
        "d": _half(scale[0], rows), "dmin": _half(minimum[0], rows),
        "scales": _numbers(scale[1], rows).astype("u1"), "mins": _numbers(minimum[1], rows).astype("u1"),
    }  # fmt: skip


def _own_affine(group: int, levels: int, top: int, plain: tuple[float, float, int]):
    """Codes 0 to ``levels``, scales of scales 0 to ``top``; ``plain``: the search without importance."""
    per_block = BLOCK // group

    def own(x: np.ndarray, importance: np.ndarray | None) -> Fields:
        groups = by_group(x, group)
        if importance is None:
            weight = np.abs(groups)
            if levels > 3:
                weight = np.sqrt(total(groups * groups) / np.float32(group)) + weight
            found = affine_scale(groups, levels, weight, *plain, absolute=levels == 3)
            scale, minimum = (_below_largest(_of_blocks(part, per_block), top) for part in found)
        else:
            weight = _spread_weights(x, importance, group, 1 if levels == 3 else 2)
            found = affine_scale(groups, levels, weight, -0.9, 0.05, 36)
            heavy = _of_blocks(total(weight), per_block)
            scale, minimum = (positive_scale(_of_blocks(part, per_block), top, heavy) for part in found)
        return _stored_affine(len(x), scale, minimum)

    return own


def _near_affine(group: int, top: int):
    def near(step: np.ndarray, shift: np.ndarray | None) -> Fields:
        low = np.zeros_like(step) if shift is None else -shift
        scale, minimum = (_below_largest(_of_blocks(part, BLOCK // group), top) for part in (step, low))
        return _stored_affine(len(step), scale, minimum)

    return near


# --- the types -------------------------------------------------------------------------------------------------------

_SIX_BITS = (
    Field("scales", 8, (Bits(4, 4, 0, 6), Bits(12, 4, 4, 4), Bits(4, 4, 4, 2, shift=6, bit=4))),
    Field("mins", 8, (Bits(8, 4, 0, 6), Bits(12, 4, 4, 4, shift=4), Bits(8, 4, 4, 2, shift=6, bit=4))),
)


def _signed_type(name: str, size: int, levels: int, layout: tuple, numbers: tuple[int, str], own: Own) -> StoredType:
    """``layout``: parts of the codes, and the fields. ``numbers``: of scales, from -top to top - 1, and their type."""
    codes, fields = layout
    top, dtype = numbers
    offset = top if dtype == "u1" else 0
    return StoredType(
        name, name.upper(), BLOCK, size, 16, tuple(range(-levels, levels)), Field("codes", BLOCK, codes), fields,
        _scaled(offset), own, _near_scaled(top, offset, dtype), search.super_scaled(top, offset),
    )  # fmt: skip


def _affine_type(
    name: str, size: int, levels: int, layout: tuple, top: int, plain: tuple[float, float, int]
) -> StoredType:
    """``layout``: parts of the codes, and the fields. ``top``: the largest number of a scale or minimum."""
    codes, fields = layout
    group = 16 if levels == 3 else 32
    return StoredType(
        name, name.upper(), BLOCK, size, group, tuple(range(levels + 1)), Field("codes", BLOCK, codes), fields,
        _affine, _own_affine(group, levels, top, plain), _near_affine(group, top), search.super_affine(top),
    )  # fmt: skip


_Q2_FIELDS = (
    half("d", 80), half("dmin", 82),
    Field("scales", 16, (Bits(0, 16, 0, 4),)), Field("mins", 16, (Bits(0, 16, 0, 4, shift=4),)),
)  # fmt: skip
_Q3_FIELDS = Field("scales", 16, planes(96, 8, 4, 8) + planes(104, 4, 2, 4, bit=4)), half("d", 108)
_Q45_FIELDS = half("d", 0), half("dmin", 2), *_SIX_BITS
_Q6_FIELDS = whole("scales", 192, 16, "i1"), half("d", 208)

TYPES = (
    _affine_type("q2_k", 84, 3, (planes(16, 64, 2, 32), _Q2_FIELDS), 15, (-0.5, 0.1, 15)),
    _signed_type(
        "q3_k", 110, 4, (planes(32, 64, 2, 32) + planes(0, 32, 1, 32, bit=2), _Q3_FIELDS), (32, "u1"), _own_q3
    ),
    _affine_type("q4_k", 144, 15, (planes(16, 128, 4, 32), _Q45_FIELDS), 63, (-1.0, 0.1, 20)),
    _affine_type(
        "q5_k", 176, 31, (planes(48, 128, 4, 32) + planes(16, 32, 1, 32, bit=4), _Q45_FIELDS), 63, (-0.5, 0.1, 15)
    ),
    _signed_type(
        "q6_k", 210, 32, (planes(0, 128, 4, 64) + planes(128, 64, 2, 32, bit=4), _Q6_FIELDS), (128, "i1"), _own_q6
    ),
)
