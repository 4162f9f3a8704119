"""E2M1 codes: MXFP4 with a power of two per 32 weights, NVFP4 with UE4M3 per 16 and one factor per tensor."""

from __future__ import annotations

import numpy as np

from ..formats.codebooks import codebook
from . import search
from .base import Fields, Scales, StoredType
from .layout import Field, planes, whole
from .rules import by_group

# Doubled, as ggml has them, which makes them whole; scales are halved. First those that are not negative, by code.
_POSITIVE = tuple(int(2 * level) for level in codebook("e2m1").levels if level >= 0)
LEVELS = (*_POSITIVE, *(-level for level in _POSITIVE))


def _exponents() -> np.ndarray:
    """Half of the powers of two that a byte e stands for: 2**(e - 128)."""
    return np.ldexp(np.float32(1), np.arange(256) - 128).astype(np.float32)


def _small_floats() -> np.ndarray:
    """Half of what a byte stands for in E4M3 without its sign; the code of NaN, 127, counts as 0."""
    code = np.arange(256) % 128
    exponent, mantissa = code >> 3, code & 7
    value = np.where(exponent == 0, np.ldexp(mantissa / 8, -6), np.ldexp(1 + mantissa / 8, exponent - 7))
    value[127] = 0
    return (value / 2).astype(np.float32)


POWERS, FLOATS = _exponents(), _small_floats()


def _largest(x: np.ndarray, group: int) -> np.ndarray:
    """Largest magnitude of each group, (rows, groups)."""
    return np.abs(by_group(x, group)).max(axis=0).reshape(len(x), -1)


def _powers(fields: Fields) -> Scales:
    return POWERS[fields["e"][..., 0]], None


def _own_power(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    """The exponent of the largest magnitude, less that of the top level: floor, as in OCP MX."""
    exponent = np.frexp(_largest(x, 32))[1] - 1
    code = np.where(_largest(x, 32) > 0, np.clip(exponent - 2 + 127, 0, 255), 0)
    return {"e": code.astype(np.uint8)[..., None]}


def _near_power(step: np.ndarray, shift: np.ndarray | None) -> Fields:
    return {"e": search.nearest_in(POWERS, np.abs(step))[..., None]}


def _floats(fields: Fields) -> Scales:
    step = FLOATS[fields["d"]]
    return step.reshape(len(step), -1), None


def _own_float(x: np.ndarray, importance: np.ndarray | None) -> Fields:
    """The largest magnitude over 6, rounded to E4M3 as ggml does it: halves up; to 448 from 248 on; what lies below
    2**-6, the least number that is not subnormal, stays below."""
    size = _largest(x, 16) / np.float32(6)
    exponent = np.where(size > 0, np.clip(np.frexp(size)[1] - 1, -6, 9), -6)
    gaps = np.floor(np.ldexp(size, 3 - exponent) + np.float32(0.5))
    gaps = np.where(size < np.float32(2.0**-6), np.minimum(gaps, 7), np.minimum(gaps, 16)).astype(np.int32)
    code = gaps + ((exponent + 6) << 3)
    code = np.where(code >= 0x78, 0x7E, code)
    return {"d": code.astype(np.uint8).reshape(len(x), -1, 4)}


def _near_float(step: np.ndarray, shift: np.ndarray | None) -> Fields:
    return {"d": search.nearest_in(FLOATS[:127], np.abs(step)).reshape(len(step), -1, 4)}


TYPES = (
    StoredType(
        "mxfp4", "MXFP4", 32, 17, 32, LEVELS, Field("codes", 32, planes(1, 16, 4, 16)), (whole("e", 0, 1),),
        _powers, _own_power, _near_power, search.listed("e", range(-2, 3), 254),
    ),
    StoredType(
        "nvfp4", "NVFP4", 64, 36, 16, LEVELS, Field("codes", 64, planes(4, 32, 4, 8)), (whole("d", 0, 4),),
        _floats, _own_float, _near_float, search.listed("d", range(-6, 7), 126), has_factor=True,
        reach=FLOATS[126] * np.float32(LEVELS[7]),
    ),
)  # fmt: skip
