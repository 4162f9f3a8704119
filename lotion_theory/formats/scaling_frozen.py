"""Lattices that do not move with the weights: given by a scale, by their highest levels, or as found at some weights.

What a rule knows is data of a callable object, not of a closure, so that quantizers can be pickled and copied.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .._arrays import Array, astype, detach, dtype_name, is_exact, is_torch, is_unread, namespace, need_together
from ..functions import number
from .codebooks import Codebook
from .lattice import Lattice, ScaledLattice, SpanLattice
from .scale_protocol import Draw, Jacobian, Promise, ScaleRule

Lattices = Callable[[Array, Codebook, str], Lattice]
"""The lattice for blocks (blocks, weights per block), a codebook and a storage type."""


@dataclass(frozen=True, eq=False)
class Scaled:
    """Levels ``scale * code``; ``scale``: a positive number as an array without axes, or one per block, (blocks, 1)."""

    scale: Array

    def __call__(self, x: Array, book: Codebook, kind: str) -> Lattice:
        given = self.scale
        if given.ndim and tuple(given.shape) != (x.shape[0], 1):
            raise ValueError(f"scale has shape {tuple(given.shape)}, expected () or ({x.shape[0]}, 1)")
        if given.ndim or is_torch(given):
            need_together(given, x, "scale")
        # Rounded to the weights' working type once: a wider scale would widen the lattice.
        value = astype(given, dtype_name(x)) if given.ndim or is_torch(given) else number(given.item(), x)
        with np.errstate(over="ignore"):
            value = 0 * detach(x[:, :1]) + value
        valid = value == value if is_exact(x) else (detach(value) > 0) & (detach(value) < math.inf)
        if is_unread(x):
            value = namespace(x).where(valid, value, math.nan)
        elif not bool(valid.all()):
            raise ValueError(f"scale is 0 or infinite in {dtype_name(x)}, the type that computations run in")
        return ScaledLattice(book, kind, value)


@dataclass(frozen=True, eq=False)
class Topped:
    """Levels ``top * (code / highest code)``; ``top``: (blocks, 1), of the type that computations run in."""

    top: Array

    def __call__(self, x: Array, book: Codebook, kind: str) -> Lattice:
        if tuple(self.top.shape) != (x.shape[0], 1):
            raise ValueError(f"top has shape {tuple(self.top.shape)}, expected ({x.shape[0]}, 1)")
        if is_torch(self.top) != is_torch(x) or dtype_name(self.top) != dtype_name(x):
            raise TypeError(f"top is of type {dtype_name(self.top)}, expected {dtype_name(x)} of the library of w")
        need_together(self.top, x, "top")
        return SpanLattice(book, kind, self.top)


@dataclass(frozen=True, eq=False)
class Kept:
    """The lattice found at some weights, for blocks of ``shape`` and storage type ``kind`` alone."""

    lattice: Lattice
    shape: tuple[int, ...]
    kind: str

    def __call__(self, x: Array, book: Codebook, kind: str) -> Lattice:
        need_together(self.lattice.top, x, "this frozen lattice", "freeze the quantizer on an array such as w")
        if tuple(x.shape) != self.shape or kind != self.kind:
            raise ValueError(
                f"this lattice was frozen for {self.shape} blocks of {self.kind}, not {tuple(x.shape)} of {kind}"
            )
        return self.lattice


def _not_set(x: Array, book: Codebook, kind: str) -> Lattice:
    raise ValueError("a frozen scale is not set yet: use quantizer.freeze(w) or quantizer.with_scale(s)")


@dataclass(frozen=True, eq=False)
class _Draws:
    lattices: Lattices

    def __call__(self, x: Array, book: Codebook, kind: str) -> list[Draw]:
        return [Draw(self.lattices(x, book, kind))]


def _still(x: Array, book: Codebook, kind: str) -> Jacobian:
    return Jacobian()


def _promise(book: Codebook) -> Promise:
    return Promise(False, True, True)


def _any_book(book: Codebook) -> None:
    """Every codebook will do."""


def frozen_rule(lattices: Lattices = _not_set) -> ScaleRule:
    """A lattice that does not move with the weights; ``lattices`` supplies it once it is known."""
    return ScaleRule(
        "frozen", "a given lattice that does not follow the weights; clips outside", _Draws(lattices), _still,
        _promise, _any_book, is_frozen=True,
    )  # fmt: skip
