"""Weights and importances for stored types, the same bits on every machine, and blocks of any bytes."""

from __future__ import annotations

from functools import cache

import numpy as np

from lotion_theory import Stream
from lotion_theory.stored import StoredType, names, stored_type

TYPES = names()
# Rows of 512 weights: at least two blocks of every type.
SHAPE = (6, 512)


@cache
def weights(purpose: str = "plain", shape: tuple[int, int] = SHAPE) -> np.ndarray:
    """Float32 rows of bell-shaped weights around .02, each with a size of its own; some rows have zeros or one sign."""
    x = (Stream(0, f"stored/{purpose}").uniforms((8, *shape)).astype(np.float64).sum(axis=0) - 4) * 2.0**-6
    x *= 2.0 ** (np.arange(shape[0]) % 5 - 2)[:, None]
    x[1:2, :40], x[2:3, 256:] = 0, 0
    x[3:4] = np.abs(x[3:4])
    return x.astype(np.float32)


@cache
def importance(shape: tuple[int, ...] = SHAPE[1:]) -> np.ndarray:
    """Positive float32 numbers from about .01 to 4."""
    u = Stream(0, "stored/importance").uniforms(shape).astype(np.float64)
    return (4 * u * u + 2.0**-10).astype(np.float32)


def any_bytes(stored: StoredType, rows: int = 4, blocks: int = 6) -> np.ndarray:
    """Rows of blocks of any bytes that the type allows, (rows, bytes)."""
    data = (256 * Stream(0, f"stored/bytes/{stored.name}").uniforms((rows * blocks, stored.size))).astype(np.uint8)
    numbers = stored.codes.read(data)
    if (numbers < len(stored.levels)).all():
        return data.reshape(rows, -1)
    # A number that is no level becomes one.
    clean = np.zeros_like(data)
    stored.codes.write(np.where(numbers < len(stored.levels), numbers, 0).astype(np.uint8), clean)
    for field in stored.fields:
        field.write(field.read(data), clean)
    return clean.reshape(rows, -1)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays hold the same bits, every NaN counting as the same."""
    kind = f"u{a.dtype.itemsize}"
    nan = np.isnan(a) if a.dtype.kind == "f" else np.zeros(a.shape, bool)
    other = np.isnan(b) if b.dtype.kind == "f" else np.zeros(b.shape, bool)
    return a.dtype == b.dtype and (nan == other).all() and (a.view(kind) == b.view(kind))[~nan].all()


def each() -> list[StoredType]:
    """All types."""
    return [stored_type(name) for name in TYPES]
