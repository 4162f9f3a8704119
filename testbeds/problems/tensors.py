"""Flat weight vectors and the tensors they consist of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lotion_theory.arguments import count

from .base import Part

_CHUNK = 1 << 22  # float64 numbers of intermediate results held at once: 32 MiB


class FlatWeights:
    """What all problems on several tensors share: weights (P,) made of ``parts``, one after another in C order."""

    parts: tuple[Part, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(part.size for part in self.parts),)

    def tensors(self, points: Any) -> list[np.ndarray]:
        """Parts of ``points`` (n, P), each (n, *its shape), float64. Raises ValueError for any other shape."""
        flat = np.asarray(points, dtype=np.float64)
        if flat.ndim != 2 or flat.shape[1:] != self.shape:
            raise ValueError(f"points have shape {flat.shape}, expected (n, {self.shape[0]})")
        ends = np.cumsum([part.size for part in self.parts])[:-1]
        pieces = np.split(flat, ends, axis=1)
        return [piece.reshape(-1, *part.shape) for piece, part in zip(pieces, self.parts, strict=True)]

    def single(self, name: str, vector: Any) -> list[np.ndarray]:
        """Parts of one ``vector`` (P,), each of its shape; ``name`` is what a ValueError calls it."""
        flat = np.asarray(vector, dtype=np.float64)
        if flat.shape != self.shape:
            raise ValueError(f"{name} has shape {flat.shape}, expected {self.shape}")
        return [piece[0] for piece in self.tensors(flat[None])]


def join(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """One flat vector (P,) from tensors, the inverse of :meth:`FlatWeights.single`."""
    return np.concatenate([tensor.ravel() for tensor in tensors])


def join_batch(tensors: Sequence[np.ndarray]) -> np.ndarray:
    """Points (n, P) from tensors (n, ...), the inverse of :meth:`FlatWeights.tensors`."""
    sizes = [int(np.prod(tensor.shape[1:])) for tensor in tensors]
    return np.concatenate([t.reshape(len(t), size) for t, size in zip(tensors, sizes, strict=True)], axis=1)


def in_chunks(f: Callable[[np.ndarray], np.ndarray], points: Any, numbers: int) -> np.ndarray:
    """``f(points)`` for a function of rows, on few enough rows at a time for ``numbers`` intermediate numbers a row."""
    rows = np.asarray(points)
    step = max(1, _CHUNK // max(1, numbers))
    if len(rows) <= step:
        return f(rows)
    return np.concatenate([f(rows[i : i + step]) for i in range(0, len(rows), step)])


def whole(name: str, value: Any, least: int = 1) -> int:
    """``value`` as an int of at least ``least``; ValueError naming the argument otherwise."""
    return count(name, value, least, f"an integer of at least {least}")


def non_negative(name: str, value: float) -> float:
    """``value`` as a finite float of at least zero; ValueError naming the argument otherwise."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} = {value!r}; valid: a finite number of at least 0")
    return float(value)
