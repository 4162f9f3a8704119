"""Whether a call is worth a compiled pass: the gate to :mod:`.passes`, which is imported once one is.

Importing this package must not cost what compiling needs, and few weights not a compilation.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from .._arrays import Array, dtype_name
from ..fused.forks import undivided
from .codebooks import Codebook
from .scale_protocol import ScaleRule

# Weights that the plain path handles while one kernel is compiled; and what a call costs it, however few it has.
_COMPILE_AFTER = 1 << 18
_CALL_COST = 1 << 12

TYPES = ("float64", "float32", "float16", "bfloat16")
"""Float types that are served; complex weights as pairs of them."""

# Blocks of these lengths have kernels of their own, without code for what remains beside whole vectors.
_USUAL = frozenset((8, 16, 32, 64, 128, 256))


def usual(columns: int) -> int | None:
    """``columns``, the weights of a block, for lengths that have kernels of their own, else None."""
    return columns if columns in _USUAL else None


def serves(w: Array) -> bool:
    """Whether arrays of this type are served at all."""
    kind = dtype_name(w)
    return (kind in TYPES or kind in ("complex64", "complex128")) and math.prod(w.shape) > 0


def compute(
    lattices: tuple[Codebook, ScaleRule], columns: int, operation: str, w: Array, *drawn: Array, out: Array = None
) -> tuple[Array, ...] | None:
    """:func:`.passes.compute` once enough weights of a format came by; None, to ask for the plain path, before.

    ``operation``: cast, round, mean, variance or bracket, or slopes with the number of anchors that move.
    """
    book, rule = lattices
    key = book, None if rule.is_frozen else rule, operation, dtype_name(w), len(drawn), usual(columns)
    if not _in_demand(key, math.prod(w.shape)):
        return None
    return _passes().compute(lattices, columns, operation, w, *drawn, out=out)


@cache
def _passes() -> Any:
    with undivided:
        from . import passes

        return passes


_demand: dict[tuple[Any, ...], int] = {}


def _in_demand(key: tuple[Any, ...], size: int) -> bool:
    """Whether so many weights came by that compiling pays; ``size`` more now."""
    asked = _demand.get(key, 0)
    if asked < _COMPILE_AFTER:
        _demand[key] = asked = asked + max(size, _CALL_COST)
    return asked >= _COMPILE_AFTER
