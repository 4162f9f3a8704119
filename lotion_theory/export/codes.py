"""Quantized weights as codes: positions in a codebook, and the anchors that place it block by block."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .._arrays import (
    Array,
    as_array,
    astype,
    detach,
    dtype_name,
    is_exact,
    is_torch,
    namespace,
    precision,
    require_finite,
)
from ..formats.codebooks import Codebook, codebook, names, registered
from ..formats.lattice import AffineLattice, Lattice, MirroredLattice, OffsetLattice, ScaledLattice, SpanLattice
from ..formats.partition import Partition
from ..formats.quantizer import Quantizer, warn_of_single_weights
from ..formats.scale_formats import SCALE_FORMATS
from ..formats.scaling import Draw, scale_rule

_FORMS: dict[str, type[Lattice]] = {
    "span": SpanLattice, "scaled": ScaledLattice, "affine": AffineLattice, "offset": OffsetLattice,
}  # fmt: skip


@dataclass(frozen=True)
class Encoded:
    """Quantized weights. Arrays are of the library, and on the device, of the weights that were encoded.

    ``codes``: positions in the codebook, uint8, of the weights' shape. ``top``, ``bottom``: anchors per block,
    (blocks,), in the type that computations run in; ``bottom`` is None for lattices with one anchor. ``factor``: None,
    or what all of ``top`` is multiplied by (two-level scales). ``anchor``: the narrowest type that holds ``top``
    exactly. ``lattice``: with unit codes u over the highest one (for affine from 0 to 1) and codes c, levels are
    "span": ``top u``, below zero ``bottom |u|`` where there is one; "scaled": ``top (c - bottom)``; "affine":
    ``bottom + (top - bottom) u``; "offset": ``top c + bottom``; always rounded once to ``dtype``. ``shape``, ``dtype``:
    of the weights.
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
        """The format that made the codes; a frozen one does not know its lattice (see :attr:`frozen`). ValueError for a
        codebook of its own that is not registered."""
        if self.own is not None and not registered(self.own):
            raise ValueError(f"format {self.format}: codebook {self.own.name} is of its own, which no string names")
        return Quantizer.parse(self.format)

    @property
    def frozen(self) -> Quantizer:
        """A quantizer on this very lattice, for weights of this shape, type and library: it moves no point of it.

        With it a point can be in a module and still be known for what it is: ``quantized(model, {name:
        encoded.frozen})``, ``save_packed(path, model, {name: encoded.frozen})``, ``encode(weight, encoded.frozen)``.
        """
        rule = replace(scale_rule("frozen"), draws=_Kept(self._lattice()))
        return Quantizer(self.book, rule, Partition.parse(self.format.rpartition("/")[2]))

    def _lattice(self) -> Lattice:
        top = self.top[:, None]
        if self.factor is not None:
            top = top * self.factor
        bottom = None if self.bottom is None else self.bottom[:, None]
        form = _FORMS[self.lattice]
        if form is ScaledLattice and bottom is None and bool((top < 0).any()):
            form = MirroredLattice
        return form(self.book, self.dtype, top, bottom)

    @property
    def book(self) -> Codebook:
        """The codebook."""
        return self.own or codebook(self.format.partition("/")[0])

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
        small = {"scaled": ("uint8",), "offset": ("fp16",)}.get(self.lattice, ())
        return self.anchor, _narrowest(self.bottom, (*small, self.dtype))

    @property
    def bits_per_weight(self) -> float:
        """Storage per weight, codes and anchors."""
        return self.bits + 8 * sum(WIDTHS[kind] for kind in self.anchors) / self.block


WIDTHS = {
    "uint8": 1, "e8m0": 1, "e4m3": 1, "ue5m3": 1, "fp16": 2, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Bytes of an anchor of each type that the loader reads; scales stored in another format are kept as floats."""


@dataclass(frozen=True, eq=False)
class _Kept:
    """The law of a frozen scale: one lattice, whatever the weights."""

    lattice: Lattice

    def __call__(self, x: Array, book: Codebook, kind: str) -> list[Draw]:
        kept = self.lattice
        blocks = kept.top.shape[0]
        if x.shape[0] != blocks or kind != kept.kind or is_torch(x) != is_torch(kept.top):
            library = "torch" if is_torch(kept.top) else "numpy"
            raise ValueError(
                f"this lattice is one of {blocks} blocks of {kept.kind} of {library}, not of {x.shape[0]} of {kind}"
            )
        return [Draw(kept)]


def encode(w: Array, q: Quantizer | str, point: Array | None = None, codes: Array | None = None) -> Encoded:
    """The codes of ``q.cast(w)``, and the lattice of ``w``: :func:`decode` gives ``q.cast(w)`` back bit for bit.

    ``point``: None, or other values on the lattice of ``w`` to be encoded instead, such as ``q.round(w, ...)`` or the
    result of GPTQ with frozen scales; for scales drawn between two lattices, each block on either. It may have been
    computed in a wider type and cast to the type of ``w`` then, or the other way round: a value belongs to the level
    from which it differs by no more than that cast and eight roundings in the type that computations run in (half a
    unit in the last place and a little), and ``decode`` gives the level itself. (Where the format promises that
    quantized points are fixed, ``encode(point, q)`` does the same for points that have their level's very bits.)

    ``codes``: None, or positions in the codebook (integers of ``w``'s shape and library) instead of a point.

    Takes numpy arrays and torch tensors of the float types. Raises TypeError for exact and complex weights, ValueError
    for a point that is not on the lattice, for codes that the codebook does not have or a drawn scale cannot place
    (``q.freeze(w)`` decides for a lattice), and whatever ``q.cast`` refuses; UserWarning where each weight is a block.
    """
    q, w = Quantizer.parse(q), detach(as_array(w))
    if is_exact(w) or q.codebook.is_complex or dtype_name(w).startswith("complex"):
        raise TypeError(f"{q} of {dtype_name(w)}: only real float arrays are stored as codes")
    if point is not None and codes is not None:
        raise ValueError("point and codes are both given; valid: one of them")
    warn_of_single_weights(q, tuple(w.shape))
    x, kind = q.blocks(w)
    with np.errstate(over="ignore"):
        lattices = [draw.lattice.detached() for draw in q.scale.draws(x, q.codebook, kind)]
    if codes is None:
        value = q.cast(w) if point is None else _fitting(point, w)
        lattice, index = _placed(lattices, q.blocks(value)[0], q)
    else:
        lattice, index = lattices[0], _given(codes, w, q, len(lattices)).reshape(x.shape)
    return _encoded(q, w, lattice, index)


def _fitting(point: Array, w: Array) -> Array:
    point = detach(as_array(point, "point"))
    if is_torch(point) != is_torch(w) or dtype_name(point) != dtype_name(w) or tuple(point.shape) != tuple(w.shape):
        raise ValueError(
            f"point has type {dtype_name(point)} and shape {tuple(point.shape)}, w {dtype_name(w)} and "
            f"{tuple(w.shape)}; they must be of one library, type and shape"
        )
    require_finite(point, "point")
    return point


def _given(codes: Array, w: Array, q: Quantizer, lattices: int) -> Array:
    """Positions given by the caller, checked, as bytes."""
    if is_torch(codes) != is_torch(w) or not (is_torch(codes) or isinstance(codes, np.ndarray)):
        raise ValueError(f"codes are a {type(codes).__name__}; they must come from the library of w")
    if "int" not in dtype_name(codes) or tuple(codes.shape) != tuple(w.shape):
        raise ValueError(
            f"codes have type {dtype_name(codes)} and shape {tuple(codes.shape)}; valid: integers of shape "
            f"{tuple(w.shape)}"
        )
    codes, last = _as_index(codes), len(q.codebook.levels) - 1
    if int(codes.min()) < 0 or int(codes.max()) > last:
        raise ValueError(
            f"codes are from {int(codes.min())} to {int(codes.max())}; codebook {q.codebook.name} has 0 ... {last}"
        )
    if lattices > 1:
        raise ValueError(f"format {q} draws one of two lattices for each block: give codes with q.freeze(w)")
    return _as_bytes(codes.to(w.device) if is_torch(codes) else codes)


def _placed(lattices: list[Lattice], y: Array, q: Quantizer) -> tuple[Lattice, Array]:
    """The lattice, by block one of ``lattices``, on which all of ``y`` (blocks, n) lies, and its positions there."""
    xp = namespace(y)
    lattice, (index, exact, near) = lattices[0], _on_lattice(lattices[0], y)
    top = lattice.top
    for other in lattices[1:]:
        place, there, close = _on_lattice(other, y)
        # Exactly on a lattice is better than nearly so.
        moves = ~exact & (there | (~near & close))
        index, top, exact, near = xp.where(moves, place, index), xp.where(moves, other.top, top), exact | there, (
            near | close
        )  # fmt: skip
    if not bool(near.all()):
        bad = int(xp.argmin(xp.where(near, 1, 0).reshape(-1)))
        raise ValueError(f"point is not on the lattice that format {q} gives w: the first such block is number {bad}")
    return type(lattice)(lattice.book, lattice.kind, top, lattice.bottom), index


def _encoded(q: Quantizer, w: Array, lattice: Lattice, index: Array) -> Encoded:
    """The codes ``index`` (blocks, n) on ``lattice``, with anchors in the narrowest type that holds them."""
    xp, top, book, kind = namespace(lattice.top), lattice.top, q.codebook, lattice.kind
    form = next(name for name, cls in _FORMS.items() if isinstance(lattice, cls))
    if form != "affine" and lattice.bottom is None and book.has_zero:
        # One spelling of an all-zero block.
        with np.errstate(over="ignore"):
            y = lattice.level(_as_index(index))
        empty = (top == 0) & (xp.signbit(y) == xp.signbit(top))
        index = xp.where(empty, xp.zeros_like(index) + book.levels.index(0), index)
    fmt = q.scale.storage
    if fmt is not None and not fmt.has_zero and book.has_zero:
        # Beside zero codes the least number of a format without a zero serves.
        idle = (top == 0) & (index == book.levels.index(0)).all(axis=1).reshape(-1, 1)
        top = xp.where(idle, 0 * top + 2.0**fmt.min_exponent, top)
    stored, factor = _split(q, w, top[:, 0]) if q.scale.couples_blocks else (top[:, 0], None)
    # A frozen scale may have been any rule's.
    formats = SCALE_FORMATS if q.scale.is_frozen else () if fmt is None else (fmt.name,)
    anchor = _narrowest(stored, (*sorted((f for f in formats if f in WIDTHS), key=lambda name: WIDTHS[name]), kind))
    bottom = None if lattice.bottom is None else lattice.bottom[:, 0]
    known = book.name in names() and codebook(book.name) == book
    return Encoded(index.reshape(w.shape), stored, bottom, factor, anchor, form, tuple(w.shape), kind, q.canonical,
                   None if known else book)  # fmt: skip


def decode(encoded: Encoded) -> Array:
    """The weights behind the codes, of the library, shape and type that were encoded."""
    lattice = encoded._lattice()
    with np.errstate(over="ignore"):
        levels = lattice.level(_as_index(encoded.codes).reshape(lattice.top.shape[0], -1))
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


def without_numbers(tensor: Any) -> str | None:
    """Why the entries of a tensor cannot be read as an array's, or None."""
    if not (isinstance(tensor, np.ndarray) or is_torch(tensor)):
        return f"is {type(tensor).__name__}; valid: numpy and torch arrays, Encoded"
    if isinstance(tensor, np.ma.MaskedArray):
        return "is a masked array, whose mask no file holds; fill it first"
    if not is_torch(tensor):
        return None
    if hasattr(tensor, "placements"):
        return "is sharded; gather it first, e.g. by get_model_state_dict(full_state_dict=True)"
    if tensor.is_meta:
        return "is on the meta device and has no values; materialise the model first"
    if str(tensor.layout) != "torch.strided":
        return f"has layout {tensor.layout}; only dense tensors are stored"
    if hasattr(tensor, "__tensor_flatten__"):
        return f"is {type(tensor).__name__}, whose values are not plain numbers; dequantize it first"
    return None


# Weights handled at a time: the arrays of one look-up then stay in a processor's cache.
_PIECE = 1 << 18


def _on_lattice(lattice: Lattice, y: Array) -> tuple[Array, Array, Array]:
    """``(index, exact, near)``: positions of the entries of ``y`` as bytes; per block (blocks, 1), if all entries are
    levels, and if all are levels or would be but for roundings."""
    xp = namespace(y)
    rows = max(1, _PIECE // y.shape[1])
    found = []
    for i in range(0, y.shape[0], rows):
        part = lattice.of(slice(i, i + rows))
        pieces = [_find(part, y[i : i + rows, k : k + _PIECE]) for k in range(0, y.shape[1], _PIECE)]
        found.append(tuple(xp.concat(side, axis=1) for side in zip(*pieces, strict=True)))
    index, exact, near = (xp.concat(side, axis=0) for side in zip(*found, strict=True))
    return index, exact.all(axis=1).reshape(-1, 1), near.all(axis=1).reshape(-1, 1)


def _find(lattice: Lattice, y: Array) -> tuple[Array, Array, Array]:
    """Positions of the entries of ``y``, as bytes, whether each is a level, and whether it is one but for roundings."""
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
        middle = lattice.guess(0 * y) if bool(wrong.any()) else index
        for other in (middle, middle - 1, middle + 1, 0 * index, 0 * index + last):
            if not bool(wrong.any()):
                break
            other = xp.clip(other, 0, last)
            level = lattice.level(other)
            better = wrong & (level == 0) & (xp.signbit(level) == xp.signbit(y))
            index, wrong = xp.where(better, other, index), wrong & ~better
        near = on
        if not bool(on.all()):
            place, close = _nearest(lattice, y)
            index, near = xp.where(on, index, place), on | close
    return _as_bytes(index), on, near


# Between a level as it is computed here and the same level computed in more digits: the unit, the product, and at most
# six in the anchors of a block (a difference, a quotient, a sum) or in the sum of an affine level.
_ROUNDINGS = 8
_SUBNORMAL = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


def _nearest(lattice: Lattice, y: Array) -> tuple[Array, Array]:
    """Positions of the levels nearest to ``y``, and where ``y`` is that level, and no other, but for roundings.

    Levels are taken before they are rounded to the storage type: from these a value that was rounded to it differs by
    half a unit in the last place and the roundings of the computation.
    """
    xp, work = namespace(y), dtype_name(y)
    cell = type(lattice)(lattice.book, work, lattice.top, lattice.bottom).locate(y)
    below, above = abs(y - cell.lo), abs(cell.hi - y)
    reach = abs(y)
    if isinstance(lattice, AffineLattice):
        reach = 0 * y + xp.maximum(abs(lattice.top), abs(lattice.bottom))
    if isinstance(lattice, OffsetLattice):
        reach = reach + abs(lattice.bottom)
    bound = (2.0 ** -precision(lattice.kind) + _ROUNDINGS * 2.0 ** -precision(work)) * reach + _SUBNORMAL[lattice.kind]
    alone = (cell.index_lo == cell.index_hi) | (xp.maximum(below, above) > bound)
    index = xp.where(below <= above, cell.index_lo, cell.index_hi)
    return index, alone & (xp.minimum(below, above) <= bound)


def _split(q: Quantizer, w: Array, top: Array) -> tuple[Array, float | None]:
    """Two-level scales as the stored scale of each block and the factor common to all."""
    fmt = q.scale.storage
    if fmt is None:
        return top, None
    x, _ = q.blocks(w)
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
    fmt = SCALE_FORMATS.get(kind)
    if fmt is not None and not fmt.is_signed:
        # E8M0 has no zero; the byte of its NaN stands for it. None of these formats has a minus zero.
        inside = (values >= 0) & (values <= float(fmt.largest)) & ~namespace(values).signbit(values)
        return inside & (fmt.nearest(values * inside) == values)
    # Scales in fp16 have a sign in some formats.
    return astype(astype(values, "float16" if kind == "fp16" else kind), dtype_name(values)) == values


def _as_bytes(index: Array) -> Array:
    return index.to(sys.modules["torch"].uint8) if is_torch(index) else index.astype(np.uint8)


def _as_index(codes: Array) -> Array:
    return codes.to(sys.modules["torch"].int64) if is_torch(codes) else codes.astype(np.int64)
