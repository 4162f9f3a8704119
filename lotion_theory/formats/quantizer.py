"""The quantizer: a codebook, a partition into blocks and a scale rule, with everything that follows from the three."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np

from .._arrays import (
    Array,
    as_array,
    astype,
    copied,
    detach,
    dtype_name,
    finite,
    is_exact,
    is_torch,
    is_unread,
    namespace,
    need_together,
    require_finite,
    working,
)
from ..arguments import real
from . import codebooks, fast, scaling, scaling_stored
from .codebooks import Codebook
from .grammar import ALIASES
from .graphs import one_operation
from .law import PIECE, BlockLaw, Branch, draws_of, law_of, pieces
from .partition import GRAMMAR, Partition
from .scale_protocol import ScaleRule, register_family, register_scale, rule_names, scale_rule
from .scaling_frozen import Kept, Scaled, Topped, frozen_rule

for _rule in (*scaling.RULES, *scaling_stored.RULES, frozen_rule()):
    register_scale(_rule)
for _family in scaling.FAMILIES:
    register_family(_family)


@dataclass(frozen=True)
class Quantizer:
    """A number format with a block structure. Build one with :meth:`parse`.

    Every method takes numpy arrays or torch tensors (float64, float32, float16, bfloat16; complex for ``fairy``; object
    arrays of ``fractions.Fraction`` for exact results, complex ones as pairs (Re, Im) on a last axis of 2) of any shape
    and returns the same kind; inputs are never changed.
    NaN, infinities, integers, empty arrays and blocks that do not divide a row raise ValueError or TypeError. Of
    tensors on an accelerator, and under ``torch.compile``, no value is read: a block with a NaN or an infinity becomes
    NaN, and a weight whose uniform is not in [0, 1). An all-zero block quantizes to zeros in every format, zero-free
    codebooks included (its scale is 0).
    """

    codebook: Codebook
    scale: ScaleRule
    partition: Partition
    text: str = field(default="", compare=False)

    # --- construction ------------------------------------------------------------------------------------------------

    @classmethod
    def parse(cls, text: str | Quantizer) -> Quantizer:
        """A quantizer from ``CODEBOOK[/SCALE][/PARTITION]`` or an alias such as ``mxfp4``, ``nvfp4/sr``.

        Default scale ``absmax`` (``zp-real`` for unsigned codebooks, ``l1`` for ``fairy``), default partition
        ``tensor``; the partitions are those of :class:`Partition`. ``mxfp4/X`` and ``nvfp4/X`` replace the rounding of
        the stored scale (``floor``, ``ceil``, ``even``, ``sr``; ``nearest``, ``up``, ``sr``). Raises ValueError naming
        the part that is wrong and the valid ones.
        """
        if isinstance(text, Quantizer):
            return text
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"a format is a string such as 'int4/absmax/block=32', not {text!r}")
        head, *rest = text.strip().lower().split("/")
        book_name, scale_name, partition_name = head, None, None
        brief: list[str] = []
        if head in ALIASES:
            book_name, scale_name, partition_name = ALIASES[head].split("/")
            short = scale_name.rpartition("-")[0]
            brief = [name.removeprefix(f"{short}-") for name in rule_names() if short and name.startswith(f"{short}-")]
            rest = [f"{short}-{part}" if part in brief else part for part in rest]
        if len(rest) > 2:
            raise ValueError(f"format {text!r} has too many parts; expected CODEBOOK[/SCALE][/{GRAMMAR}]")
        try:
            book = codebooks.codebook(book_name)
        except ValueError as error:
            raise ValueError(f"format {text!r}: {error}; format aliases: {', '.join(ALIASES)}") from None
        for place, part in enumerate(rest):
            if Partition.meant(part):
                if place != len(rest) - 1:
                    raise ValueError(f"format {text!r}: the partition {part!r} comes last")
                partition_name = part
            else:
                if place != 0:
                    valid = GRAMMAR.replace("|", ", ")
                    raise ValueError(f"format {text!r}: {part!r} is no partition; valid: {valid}")
                scale_name = part
        if scale_name is None:
            scale_name = "zp-real" if book.unsigned else "absmax"
        try:
            rule = scale_rule(scale_name)
        except ValueError as error:
            also = f"; after {head} also {', '.join(brief)}" if brief else ""
            raise ValueError(f"format {text!r}: {error}{also}") from None
        rule.check(book)
        return cls(book, rule, Partition.parse(partition_name or "tensor"), text.strip().lower())

    @property
    def canonical(self) -> str:
        """The format with nothing left to defaults or aliases, e.g. ``int4/absmax/tensor``."""
        return f"{self.codebook.name}/{self.scale.name}/{self.partition}"

    def __str__(self) -> str:
        return self.text or self.canonical

    @property
    def is_absmax(self) -> bool:
        """Whether levels run from minus to plus the largest magnitude of a block, unrounded: an absmax scale, or a
        gauge equal to it, and a real codebook from -c to c."""
        return self.scale.spans_absmax and self.codebook.balanced and not self.codebook.is_complex

    def with_partition(self, partition: str) -> Quantizer:
        """The same codebook and scale rule on another partition."""
        changed = replace(self, partition=Partition.parse(partition), text="")
        return changed

    def with_scale(self, scale: float | Array) -> Quantizer:
        """A frozen or learned lattice with levels ``scale * code``.

        ``scale``: a positive number, or one per block, (blocks, 1). A torch scale that requires a gradient is read at
        each use, and receives it through ``variance`` and ``mean``; any other is copied. Raises ValueError for a scale
        that is not positive, or, when used, that is 0 or infinite in the type of the weights or of another shape.
        """
        given: Array = scale
        if not is_torch(scale) and not isinstance(scale, np.ndarray):
            given = np.asarray(scale if isinstance(scale, Fraction) else real("scale", scale))
        given = _kept(given, "scale")
        if not bool((detach(given) > 0).all()):
            raise ValueError("scale must be positive")
        return replace(self, scale=frozen_rule(Scaled(given)), text="")

    def with_top(self, top: Array) -> Quantizer:
        """A frozen lattice with levels ``top * (code / highest code)``, such as a learned one; it clips.

        ``top``: the highest level of each block, (blocks, 1), not negative, of the library and type that computations
        on the weights run in; copied unless it requires a gradient. Raises ValueError for other values or, when used,
        shapes.
        """
        top = _kept(top, "top")
        if not bool((detach(top) >= 0).all()):
            raise ValueError("top must not be negative")
        return replace(self, scale=frozen_rule(Topped(top)), text="")

    def freeze(self, w: Array) -> Quantizer:
        """The same lattice as ``w`` has now, no longer moving; of a drawn scale, the more probable lattice.

        The result accepts arrays of ``w``'s shape, type and library. Raises ValueError and TypeError as :meth:`cast`.
        """
        x, kind = self.blocks(w)
        draws = draws_of(x, kind, self.scale, self.codebook)
        lattices = [d.lattice.detached() for d in draws]
        kept = lattices[0]
        if len(draws) == 2:
            xp = namespace(x)
            kept.top = xp.where(detach(draws[1].prob) * 2 >= 1, lattices[1].top, lattices[0].top)
        # A learned scale moves on; this lattice stays.
        kept.top, kept.bottom = copied(kept.top), None if kept.bottom is None else copied(kept.bottom)
        return replace(self, scale=frozen_rule(Kept(kept, tuple(x.shape), kind)), text="")

    # --- what the rest is built on -----------------------------------------------------------------------------------

    def _reals(self, w: Array) -> Array:
        """Real coordinates: for complex weights (Re + Im, Re - Im) interleaved along the last axis."""
        is_complex = dtype_name(w).startswith("complex")
        xp = namespace(w)
        if self.codebook.is_complex and is_exact(w) and w.ndim and w.shape[-1] == 2:
            re, im = w[..., 0], w[..., 1]
            return xp.stack((re + im, re - im), axis=-1).reshape(*w.shape[:-2], -1)
        if self.codebook.is_complex and not is_complex:
            raise TypeError(f"format {self} needs complex weights, not {dtype_name(w)}")
        if is_complex and not self.codebook.is_complex:
            raise TypeError(f"format {self} takes real weights; of the codebooks only fairy is complex")
        if not is_complex:
            return w
        re, im = xp.real(w), xp.imag(w)
        if isinstance(w, np.ndarray):
            out = np.empty((*w.shape, 2), re.dtype)
            np.add(re, im, out=out[..., 0])
            np.subtract(re, im, out=out[..., 1])
        else:
            out = xp.stack((re + im, re - im), axis=-1)
        require_finite(out, "w: Re + Im or Re - Im")
        return out.reshape(*w.shape[:-1], -1) if w.ndim else out

    def blocks(self, w: Array) -> tuple[Array, str]:
        """``(x, kind)``: the blocks of ``w``, (blocks, weights per block), and the name of its storage type.

        ``x`` is real, in the type that computations run in; a complex weight is its pair Re + Im, Re - Im. Raises
        ValueError and TypeError as :meth:`cast`; on an accelerator, a block with a NaN or an infinity is all NaN.
        """
        x = self._reals(finite(w))
        blocks = self.partition.to_blocks(working(x), 2 if self.codebook.is_complex else 1)
        if is_unread(blocks):
            xp = namespace(blocks)
            blocks = xp.where(xp.isfinite(detach(blocks)).all(dim=1, keepdim=True), blocks, math.nan)
        # Sums over a block run in memory order: a transposed input must not change their last bit.
        return (np.ascontiguousarray(blocks) if isinstance(blocks, np.ndarray) else blocks.contiguous()), dtype_name(x)

    def unblock(self, x: Array, like: Array) -> Array:
        """An array of the shape of :meth:`blocks` back in the shape and type of the weights ``like``."""
        if not self.codebook.is_complex:
            return astype(x, dtype_name(like)).reshape(like.shape)
        xp = namespace(x)
        pairs = x.reshape(*(like.shape[:-1] if is_exact(like) else like.shape), 2)
        a, b = pairs[..., 0], pairs[..., 1]
        if is_exact(like):
            return xp.stack(((a + b) / 2, (a - b) / 2), axis=-1)
        # Halved before adding, so that the sum of two huge equal numbers does not overflow.
        if isinstance(like, np.ndarray):
            out = np.empty(like.shape, like.dtype)
            out.real, out.imag = a / 2 + b / 2, a / 2 - b / 2
            return out
        out = xp.astype(a / 2 + b / 2, like.dtype) + 1j * xp.astype(a / 2 - b / 2, like.dtype)
        return xp.astype(out, like.dtype)

    def _real_map(self, x: Array, like: Array) -> Array:
        """A real quantity per coordinate in the shape of ``like``; complex weights get the mean over their pair."""
        if not self.codebook.is_complex:
            return astype(x, dtype_name(like)).reshape(like.shape)
        return x.reshape(*(like.shape[:-1] if is_exact(like) else like.shape), 2).sum(-1) / 2

    def block_law(self, w: Array) -> BlockLaw:
        """The law of ``RR(w)`` as arrays (blocks, weights per block): see :class:`.law.BlockLaw`."""
        return law_of(*self.blocks(w), self.scale, self.codebook)

    def branches(self, w: Array) -> list[Branch]:
        """The law of ``RR(w)`` per block: which lattices may be drawn, and each weight's cell there.

        One branch for ordinary scale rules, two for SR scales. Arrays are (blocks, weights per block).
        """
        return self.block_law(w).branches

    def _fast(self, operation: str, w: Array, *drawn: Array, out: Array | None = None) -> tuple[Array, ...] | None:
        """The results of an operation by :mod:`.fast`, in the shape and type of ``w``; None to ask for the plain
        path."""
        if not fast.serves(w):
            return None
        if not self.codebook.is_complex:
            if not self.partition.fits(w.shape):
                return None
            length = self.partition.length(w.shape)
            return fast.compute((self.codebook, self.scale), length, operation, w, *drawn, out=out)
        x, _ = self.blocks(w)
        if drawn:
            if tuple(drawn[0].shape) != (*w.shape, 2):
                return None
            drawn = (drawn[0].reshape(x.shape), *drawn[1:])
        found = fast.compute((self.codebook, self.scale), x.shape[1], operation, x, *drawn)
        if found is None:
            return None
        back = self._real_map if operation == "variance" else self.unblock
        return tuple(_delivered(back(part, w), out) for part in found)

    def _by_law(self, x: Array, kind: str, compute: Callable[[BlockLaw, tuple[slice, slice]], Array]) -> Array:
        """What ``compute`` makes of the law of the blocks ``x``, in their shape; a large array goes part by part.
        ``compute(law, place)``: which blocks and weights the law is of."""
        whole = math.prod(x.shape) <= PIECE or is_exact(x) or is_unread(x)
        if whole or (is_torch(x) and x.requires_grad):
            everything = slice(None), slice(None)
            return compute(law_of(x, kind, self.scale, self.codebook), everything)
        result = None
        for place, law in pieces(x, kind, self.scale, self.codebook):
            part = compute(law, place)
            if result is None:
                result = namespace(x).empty_like(x, dtype=part.dtype)
            result[place] = part
        return result

    # --- rounding ----------------------------------------------------------------------------------------------------

    @one_operation
    def bracket(self, w: Array) -> tuple[Array, Array]:
        """``(lo, hi)``: the adjacent lattice levels with ``lo <= w <= hi``, equal on a level and beyond a clip edge.

        Raises ValueError for SR scales (two lattices: see :meth:`branches`) and for complex codebooks.
        """
        w = as_array(w)
        if self.scale.is_drawn or self.codebook.is_complex:
            reason = (
                "its scale is drawn between two lattices" if self.scale.is_drawn else "complex levels have no order"
            )
            raise ValueError(f"{self} has no single bracket: {reason}; use branches(w)")
        found = self._fast("bracket", w)
        if found is not None:
            return found[0], found[1]
        cell = self.branches(w)[0].cell
        return self.unblock(cell.lo, w), self.unblock(cell.hi, w)

    @one_operation
    def cast(self, w: Array, out: Array | None = None) -> Array:
        """Round to nearest (RTN), ties to even; for an SR scale on the likelier lattice, its largest weight on ``T⁺``.

        ``out``: an array of ``w``'s library, type and shape, apart from it in memory, to be filled and returned. After
        an error it may hold anything.
        """
        w = as_array(w)
        _check_out(w, out)
        found = self._fast("cast", w, out=out)
        if found is not None:
            return found[0]
        x, kind = self.blocks(w)
        return _delivered(self.unblock(self._by_law(x, kind, lambda law, _: law.nearest()), w), out)

    @one_operation
    def round(self, w: Array, uniforms: Array, scale_uniforms: Array | None = None, out: Array | None = None) -> Array:
        """Randomized (stochastic) rounding RR(w), the noise of LOTION (arXiv 2510.08757).

        ``uniforms``: values in [0, 1) of ``w``'s shape (for complex weights with a last axis of 2 added), drawn by the
        caller, e.g. by :class:`lotion_theory.streams.Stream`. ``scale_uniforms``: one per block, shape (blocks,),
        needed by SR scales and refused by the others. Raises ValueError for uniforms of another shape or range.
        ``out``: as for :meth:`cast`, and apart from the uniforms too.
        """
        w = as_array(w)
        _check_out(w, out, uniforms=uniforms, scale_uniforms=scale_uniforms)
        drawn = (uniforms,) if scale_uniforms is None else (uniforms, scale_uniforms)
        found = self._fast("round", w, *drawn, out=out)
        if found is not None:
            return found[0]
        x, kind = self.blocks(w)
        is_drawn = self.scale.is_drawn
        shape = (*w.shape, 2) if self.codebook.is_complex else tuple(w.shape)
        u = self._uniforms(uniforms, shape, "uniforms", x).reshape(x.shape)
        if is_drawn != (scale_uniforms is not None):
            need = "needs" if is_drawn else "takes no"
            raise ValueError(f"format {self} {need} scale_uniforms (one per block, {x.shape[0]} here)")
        v = self._uniforms(scale_uniforms, (x.shape[0],), "scale_uniforms", x)[:, None] if is_drawn else None

        def picked(law: BlockLaw, place: tuple[slice, slice]) -> Array:
            return law.pick(u[place], None if v is None else v[place[0]])

        return _delivered(self.unblock(self._by_law(x, kind, picked), w), out)

    @staticmethod
    def _uniforms(u: Array, shape: tuple[int, ...], name: str, like: Array) -> Array:
        u = as_array(u, name)
        if dtype_name(u).startswith("complex"):
            raise TypeError(f"{name} must be real, not {dtype_name(u)}")
        need_together(u, like, name)
        if tuple(u.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(u.shape)}, expected {shape}")
        valid = (u >= 0) & (u < 1)
        if is_unread(u):
            return namespace(u).where(valid, u, math.nan)
        if not bool(valid.all()):
            raise ValueError(f"{name} must lie in [0, 1)")
        return u

    # --- moments -----------------------------------------------------------------------------------------------------

    @one_operation
    def mean(self, w: Array) -> Array:
        """``E[RR(w)]``, elementwise; equal to ``w`` wherever nothing is clipped (claim: unbiased)."""
        w = as_array(w)
        found = self._fast("mean", w)
        if found is not None:
            return found[0]
        return self.unblock(self._by_law(*self.blocks(w), lambda law, _: law.mean()), w)

    @one_operation
    def variance(self, w: Array) -> Array:
        """Variance of ``RR(w)``, elementwise: ``(hi - w)(w - lo)``, clipped weights having none.

        For SR scales, the variance over the drawn lattice as well. For complex weights ``E|RR(w) - E RR(w)|²``. In
        torch it is differentiable with the lattice moving (autograd through the scale).
        """
        w = as_array(w)
        found = self._fast("variance", w)
        if found is not None:
            return found[0]
        return self._real_map(self._by_law(*self.blocks(w), lambda law, _: law.variance()), w)


def _kept(array: Array, name: str) -> Array:
    """A copy of ``array``, checked, so that changing it later changes nothing here; itself if it is to be learned."""
    array = finite(array, name)
    return array if is_torch(array) and array.requires_grad else copied(array)


def _check_out(w: Array, out: Array | None, **inputs: Array) -> None:
    """TypeError or ValueError for an ``out`` that cannot take the result for ``w``, or shares memory with an input."""
    if out is None:
        return
    if not isinstance(out, np.ndarray) and not is_torch(out):
        raise TypeError(f"out must be an array, not {type(out).__name__}")
    if is_torch(out) != is_torch(w) or dtype_name(out) != dtype_name(w) or tuple(out.shape) != tuple(w.shape):
        raise ValueError(
            f"out has type {dtype_name(out)} and shape {tuple(out.shape)}, w {dtype_name(w)} and {tuple(w.shape)}; "
            "they must be of one library, type and shape"
        )
    start, end = _addresses(out)
    for name, other in (("w", w), *inputs.items()):
        if isinstance(other, np.ndarray) or is_torch(other):
            first, last = _addresses(other)
            if first < end and start < last:
                raise ValueError(f"out overlaps {name} in memory; inputs are never changed")


def _addresses(x: Array) -> tuple[int, int]:
    """First and last address of the memory that ``x`` spans (for a tensor, its whole storage)."""
    if is_torch(x):
        start = x.untyped_storage().data_ptr()
        return start, start + x.untyped_storage().nbytes()
    return np.lib.array_utils.byte_bounds(x)


def _delivered(result: Array, out: Array | None) -> Array:
    if out is None:
        return result
    out[...] = result
    return out


def warn_of_single_weights(quantizer: Quantizer, shape: tuple[int, ...], name: str = "") -> None:
    """UserWarning where each block of a tensor to be quantized holds one weight, which its scale alone could store, as
    those of 1x1 convolutions do under ``row``. A frozen lattice, which does not follow the weight, quantizes it."""
    shape, partition = tuple(shape), quantizer.partition
    if quantizer.scale.is_frozen or partition.length(shape) != 1:
        return
    ways = {"channel": "channel (one scale per output)", "tensor": "tensor"}
    better = [text for kind, text in ways.items() if Partition(kind).length(shape) > 1]
    advice = f"use the partition {' or '.join(better)}, or leave it out" if better else "leave it out"
    message = (
        f"{name}{': ' if name else ''}in shape {shape} each {partition.kind} is one weight with a scale of its own, "
        f"so that format {quantizer} rounds little or nothing and saves no memory; {advice}"
    )
    warnings.warn(message, stacklevel=_levels_up())


_OURS = ("lotion_theory", "testbeds", "contextlib")


def _levels_up() -> int:
    """How many calls up from the caller the code lies that uses these packages."""
    frame, level = sys._getframe(2), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _OURS:
        frame, level = frame.f_back, level + 1
    return level
