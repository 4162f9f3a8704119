"""Quantized weights as codes: positions in a codebook, and the anchors that place it block by block."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np

from .._arrays import Array, as_array, astype, detach, dtype_name, is_exact, is_torch, namespace
from ..grids import Codebook, names
from ..lattice import AffineLattice, Lattice, ScaledLattice, SpanLattice
from ..partition import warn_of_single_weights
from ..quantizer import Quantizer
from ..scale_formats import SCALE_FORMATS

_FORMS: dict[str, type[Lattice]] = {"span": SpanLattice, "scaled": ScaledLattice, "affine": AffineLattice}


@dataclass(frozen=True)
class Encoded:
    """Quantized weights. Arrays are of the library, and on the device, of the weights that were encoded.

    ``codes``: positions in the codebook, uint8, of the weights' shape. ``top``, ``bottom``: anchors per block,
    (blocks,), in the type that computations run in; ``bottom`` is None for lattices with one anchor. ``factor``: None,
    or what all of ``top`` is multiplied by (two-level scales). ``anchor``: the narrowest type that holds ``top``
    exactly. ``lattice``: with unit codes u over the highest one (for affine from 0 to 1) and codes c, levels are
    "span": ``top u``, below zero ``bottom |u|`` where there is one; "scaled": ``top (c - bottom)``; "affine":
    ``bottom + (top - bottom) u``; always rounded once to ``dtype``. ``shape``, ``dtype``: of the weights.
    ``format``: a format string with nothing left to defaults. ``own``: the codebook, where no format can name it.
    """

    codes: Array
    top: Array
    bottom: Array | None
    factor: float | None
    anchor: str
    lattice: str
    shape: tuple[int, ...]
    dtype: str
    format: str
    own: Codebook | None = None

    @property
    def quantizer(self) -> Quantizer:
        """The format that made the codes. A frozen one does not know its lattice any more; ValueError for a codebook
        of its own."""
        return Quantizer.parse(self.format)

    @property
    def book(self) -> Codebook:
        """The codebook."""
        return self.own or self.quantizer.codebook

    @property
    def bits(self) -> int:
        """Bits of one stored code."""
        return (len(self.book.levels) - 1).bit_length()

    @property
    def block(self) -> int:
        """Weights per block."""
        return math.prod(self.shape) // self.top.shape[0]

    @property
    def anchors(self) -> tuple[str, ...]:
        """Storage types of ``top`` and, where there is one, of ``bottom``."""
        if self.bottom is None:
            return (self.anchor,)
        return self.anchor, _narrowest(
            self.bottom, ("uint8", self.dtype) if self.lattice == "scaled" else (self.dtype,)
        )

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight, codes and anchors."""
        return self.bits + 8 * sum(WIDTHS[kind] for kind in self.anchors) / self.block


WIDTHS = {
    "uint8": 1, "e8m0": 1, "e4m3": 1, "ue5m3": 1, "fp16": 2, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Bytes of an anchor of each type."""


def encode(w: Array, q: Quantizer | str, point: Array | None = None) -> Encoded:
    """The codes of ``q.cast(w)``, and the lattice of ``w``: :func:`decode` gives ``q.cast(w)`` back bit for bit.

    ``point``: None, or other values on the lattice of ``w`` to be encoded instead, such as ``q.round(w, ...)`` or the
    result of GPTQ with frozen scales; for scales drawn between two lattices, each block on either. (Where the format
    promises that quantized points are fixed, ``encode(point, q)`` does the same.)

    Takes numpy arrays and torch tensors of the float types. Raises TypeError for exact and complex weights, ValueError
    for a point that is not on the lattice, and whatever ``q.cast`` refuses; UserWarning where each weight is a block.
    """
    q, w = Quantizer.parse(q), detach(as_array(w))
    if is_exact(w) or q.codebook.is_complex or dtype_name(w).startswith("complex"):
        raise TypeError(f"{q} of {dtype_name(w)}: only real float arrays are stored as codes")
    warn_of_single_weights(q, tuple(w.shape))
    value = q.cast(w) if point is None else detach(as_array(point, "point"))
    if is_torch(value) != is_torch(w) or dtype_name(value) != dtype_name(w) or tuple(value.shape) != tuple(w.shape):
        raise ValueError(
            f"point has type {dtype_name(value)} and shape {tuple(value.shape)}, w {dtype_name(w)} and "
            f"{tuple(w.shape)}; they must be of one library, type and shape"
        )
    x, kind = q._blocks(q._checked(w))
    y, _ = q._blocks(value)
    xp = namespace(y)
    with np.errstate(over="ignore"):
        lattices = [draw.lattice._detached() for draw in q.scale.draws(x, q.codebook, kind)]
    lattice, (index, on) = lattices[0], _on_lattice(lattices[0], y)
    top = lattice.top
    for other in lattices[1:]:
        place, there = _on_lattice(other, y)
        index, top, on = xp.where(on, index, place), xp.where(on, top, other.top), on | there
    if not bool(on.all()):
        bad = int(xp.argmin(xp.where(on, 1, 0).reshape(-1)))
        raise ValueError(f"point is not on the lattice that format {q} gives w: the first such block is number {bad}")
    form = next(name for name, cls in _FORMS.items() if isinstance(lattice, cls))
    book, name = q.codebook, q.scale.name
    if form != "affine" and lattice.bottom is None and book.has_zero:
        # One spelling of an all-zero block.
        empty = (top == 0) & (xp.signbit(y) == xp.signbit(top))
        index = xp.where(empty, xp.zeros_like(index) + book.levels.index(0), index)
    scale_format = "fp16" if name == "q4_0" else name.partition("-")[0]
    if scale_format == "e8m0" and book.has_zero:
        # E8M0 has no zero; beside zero codes its least number serves.
        idle = (top == 0) & (index == book.levels.index(0)).all(axis=1).reshape(-1, 1)
        top = xp.where(idle, 0 * top + 2.0**-127, top)
    stored, factor = _split(q, w, top[:, 0]) if q.scale.couples_blocks else (top[:, 0], None)
    anchor = _narrowest(stored, (scale_format, kind) if scale_format in SCALE_FORMATS else (kind,))
    bottom = None if lattice.bottom is None else lattice.bottom[:, 0]
    return Encoded(index.reshape(w.shape), stored, bottom, factor, anchor, form, tuple(w.shape), kind, q.canonical,
                   None if book.name in names() else book)  # fmt: skip


def decode(encoded: Encoded) -> Array:
    """The weights behind the codes, of the library, shape and type that were encoded."""
    top = encoded.top[:, None]
    if encoded.factor is not None:
        top = top * encoded.factor
    bottom = None if encoded.bottom is None else encoded.bottom[:, None]
    lattice = _FORMS[encoded.lattice](encoded.book, encoded.dtype, top, bottom)
    with np.errstate(over="ignore"):
        levels = lattice.level(_as_index(encoded.codes).reshape(top.shape[0], -1))
    return astype(levels, encoded.dtype).reshape(encoded.shape)


def integers(encoded: Encoded) -> Array:
    """The codes as int8 numbers, e.g. -7 ... 7; ValueError for a codebook that is not one of integers."""
    book = encoded.book
    if any(c.denominator != 1 for c in book.levels) or book.low < -128 or book.high > 127:
        raise ValueError(f"codebook {book.name} is not one of integers from -128 to 127")
    table, codes = np.array([int(c) for c in book.levels], np.int8), encoded.codes
    return (
        sys.modules["torch"].from_numpy(table).to(codes.device)[_as_index(codes)] if is_torch(codes) else table[codes]
    )


# Weights handled at a time: the arrays of one look-up then stay in a processor's cache.
_PIECE = 1 << 18


def _on_lattice(lattice: Lattice, y: Array) -> tuple[Array, Array]:
    """``(index, on)``: positions of the entries of ``y`` as bytes, and per block (blocks, 1) if all are levels."""
    xp = namespace(y)
    rows = max(1, _PIECE // y.shape[1])
    found = []
    for i in range(0, y.shape[0], rows):
        bottom = None if lattice.bottom is None else lattice.bottom[i : i + rows]
        part = type(lattice)(lattice.book, lattice.kind, lattice.top[i : i + rows], bottom)
        pieces = [_find(part, y[i : i + rows, k : k + _PIECE]) for k in range(0, y.shape[1], _PIECE)]
        found.append(tuple(xp.concat(side, axis=1) for side in zip(*pieces, strict=True)))
    index, on = (xp.concat(side, axis=0) for side in zip(*found, strict=True))
    return index, on.all(axis=1).reshape(-1, 1)


def _find(lattice: Lattice, y: Array) -> tuple[Array, Array]:
    """Positions of the entries of ``y``, as bytes, and whether each is a level."""
    xp = namespace(y)
    with np.errstate(over="ignore"):
        cell = lattice.locate(y)
        index = xp.where(cell.lo == y, cell.index_lo, cell.index_hi)
        on = (cell.lo == y) | (cell.hi == y)
        # A level may be -0: of a negative scale, and where a product underflows.
        wrong = (y == 0) & on
        if bool(wrong.any()):
            wrong = wrong & (xp.signbit(lattice.level(index)) != xp.signbit(y))
        last = len(lattice.book.levels) - 1
        middle = lattice._guess(0 * y) if bool(wrong.any()) else index
        for other in (middle, middle - 1, middle + 1, 0 * index, 0 * index + last):
            if not bool(wrong.any()):
                break
            other = xp.clip(other, 0, last)
            level = lattice.level(other)
            better = wrong & (level == 0) & (xp.signbit(level) == xp.signbit(y))
            index, wrong = xp.where(better, other, index), wrong & ~better
    return _as_bytes(index), on


def _split(q: Quantizer, w: Array, top: Array) -> tuple[Array, float | None]:
    """Two-level scales as the stored scale of each block and the factor common to all."""
    fmt = SCALE_FORMATS[q.scale.name.partition("-")[0]]
    x, _ = q._blocks(w)
    # The very operations that made the scale, so that the product has its bits.
    factor = namespace(x).max(namespace(x).max(abs(x))) / float(q.codebook.high * fmt.largest)
    with np.errstate(over="ignore"):
        stored = fmt.nearest(top / (factor + (factor == 0)))
    if bool((stored * factor == top).all()):
        return stored, float(factor)
    return top, None


def _narrowest(values: Array, kinds: tuple[str, ...]) -> str:
    """The first of ``kinds`` that holds all ``values`` exactly, else the type they are in."""
    with np.errstate(over="ignore"):
        return next((kind for kind in kinds if bool(_held(values, kind).all())), dtype_name(values))


def _held(values: Array, kind: str) -> Array:
    if kind == "uint8":
        return (values >= 0) & (values <= 255) & (values % 1 == 0)
    if kind in SCALE_FORMATS and kind != "fp16":
        fmt = SCALE_FORMATS[kind]
        # E8M0 has no zero; the byte of its NaN stands for it.
        inside = (values >= 0) & (values <= float(fmt.largest))
        return inside & (fmt.nearest(values * inside) == values)
    # Scales in fp16 have a sign in some formats.
    return astype(astype(values, "float16" if kind == "fp16" else kind), dtype_name(values)) == values


def _as_bytes(index: Array) -> Array:
    return index.to(sys.modules["torch"].uint8) if is_torch(index) else index.astype(np.uint8)


def _as_index(codes: Array) -> Array:
    return codes.to(sys.modules["torch"].int64) if is_torch(codes) else codes.astype(np.int64)
