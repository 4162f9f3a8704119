"""Ternary types, one fp16 scale per 256 weights: TQ1_0 has five weights to a byte, TQ2_0 four."""

from __future__ import annotations

import numpy as np

from ..formats.codebooks import codebook
from . import search
from .base import Fields, Scales, StoredType
from .layout import Field, Trits, half, planes

BLOCK = 256


def _scale(fields: Fields) -> Scales:
    return fields["d"][..., 0].astype(np.float32), None


def _largest(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    return _near(np.abs(x.reshape(len(x), -1, BLOCK)).max(axis=2), None)


def _near(step: np.ndarray, shift: np.ndarray | None) -> Fields:
    return {"d": step[..., None].astype("<f2")}


def _type(name: str, size: int, codes: tuple, at: int) -> StoredType:
    levels = tuple(int(level) for level in codebook("ternary").levels)
    return StoredType(
        name, name.upper(), BLOCK, size, BLOCK, levels, Field("codes", BLOCK, codes), (half("d", at),),
        _scale, _largest, _near, search.ternary,
    )  # fmt: skip


TYPES = (
    _type("tq1_0", 54, (Trits(0, 32, 0), Trits(32, 16, 160), Trits(48, 4, 240, 4)), 52),
    _type("tq2_0", 66, planes(0, 64, 2, 32), 64),
)
