"""Types of one fp16 scale per 32 weights: Q4_0, Q5_0, Q8_0, IQ4_NL, and with an fp16 minimum Q4_1 and Q5_1."""

from __future__ import annotations

import numpy as np

from ..formats.codebooks import codebook
from . import search
from .base import Fields, Scales, StoredType
from .layout import Field, half, planes, whole
from .rules import (
    ONE,
    ZERO,
    affine_scale,
    by_group,
    emphasised,
    leader,
    lowest,
    mean_square,
    signed_scale,
    total,
)

BLOCK = 32


def _scale(fields: Fields) -> Scales:
    return fields["d"][..., 0].astype(np.float32), None


def _affine(fields: Fields) -> Scales:
    return fields["d"][..., 0].astype(np.float32), fields["m"][..., 0].astype(np.float32)


def _stored(shape: tuple[int, ...], **numbers: np.ndarray) -> Fields:
    """Numbers of the groups of rows as fields of halves."""
    return {name: part.reshape(shape[0], -1, 1).astype("<f2") for name, part in numbers.items()}


def _near(step: np.ndarray, shift: np.ndarray | None) -> Fields:
    return _stored(step.shape, d=step, **({} if shift is None else {"m": shift}))


def _weights(x: np.ndarray, importance: np.ndarray) -> np.ndarray:
    return by_group(emphasised(x, importance, mean_square(x)), BLOCK)


def _signed(top: int):
    """The leader at -top; with importance the search of :func:`signed_scale`."""

    def own(x: np.ndarray, importance: np.ndarray | None) -> Fields:
        groups = by_group(x, BLOCK)
        if importance is None:
            return _stored(x.shape, d=leader(groups) / np.float32(-top))
        return _stored(x.shape, d=signed_scale(groups, top, _weights(x, importance))[0])

    return own


def _spanned(top: int):
    """From the least weight to the largest; with importance the search of :func:`affine_scale`."""

    def own(x: np.ndarray, importance: np.ndarray | None) -> Fields:
        groups = by_group(x, BLOCK)
        if importance is None:
            low, high = lowest(groups), groups.max(axis=0)
            return _stored(x.shape, d=(high - low + ZERO) / np.float32(top), m=low)
        scale, minimum = affine_scale(groups, top, _weights(x, importance), -0.9, 0.05, 36)
        return _stored(x.shape, d=scale, m=-minimum)

    return own


def _largest(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    return _stored(x.shape, d=np.abs(by_group(x, BLOCK)).max(axis=0) / np.float32(127))


def _uneven(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    """IQ4_NL: of scales with the leader from -120 to -134, each improved by least squares, that of least error."""
    groups = by_group(x, BLOCK)
    if importance is None:
        weight = groups * groups
    else:
        spread = np.repeat(mean_square(x.reshape(-1, BLOCK), 2), BLOCK, axis=1).reshape(x.shape)
        weight = by_group(emphasised(x, importance, spread), BLOCK)
    lead = leader(groups)
    levels = np.array(_IQ4_NL, np.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    # Below what any candidate reaches.
    scale, best = np.zeros_like(lead), np.full_like(lead, -1)
    for k in (None, *range(-7, 8)):
        inverse = ONE / (-lead / levels[0]) if k is None else (np.float32(k) + levels[0]) / lead
        chosen = levels[np.searchsorted(middles, inverse * groups, side="right")]
        product, square = total(weight * chosen * groups), total(weight * chosen * chosen)
        better = (square > 0) & (product * product > best * square)
        fitted = product / square
        scale, best = np.where(better, fitted, scale), np.where(better, fitted * product, best)
    return _stored(x.shape, d=np.where(np.abs(lead) < np.float32(1e-15), ZERO, scale))


_IQ4_NL = tuple(int(level) for level in codebook("iq4nl").levels)


def _type(name: str, size: int, levels, codes, own, fields: tuple[Field, ...] = (half("d", 0),)) -> StoredType:
    affine = len(fields) > 1
    return StoredType(
        name, name.upper(), BLOCK, size, BLOCK, tuple(levels), Field("codes", BLOCK, codes), fields,
        _affine if affine else _scale, own, _near, search.affine if affine else search.scaled,
    )  # fmt: skip


_MINIMUM = (half("d", 0), half("m", 2))

TYPES = (
    _type("q4_0", 18, range(-8, 8), planes(2, 16, 4, 16), _signed(8)),
    _type("q4_1", 20, range(16), planes(4, 16, 4, 16), _spanned(15), _MINIMUM),
    _type("q5_0", 22, range(-16, 16), planes(6, 16, 4, 16) + planes(2, 4, 1, 1, bit=4), _signed(16)),
    _type("q5_1", 24, range(32), planes(8, 16, 4, 16) + planes(4, 4, 1, 1, bit=4), _spanned(31), _MINIMUM),
    _type("q8_0", 34, (*range(128), *range(-128, 0)), whole("codes", 2, BLOCK).parts, _largest),
    _type("iq4_nl", 18, _IQ4_NL, planes(2, 16, 4, 16), _uneven),
)
