"""Reproducible uniforms: one ``(seed, purpose, step)`` gives the same bits on numpy, numba and torch, in any chunking.

>>> Stream(seed=0, purpose="rounding").uniforms((2, 3), step=7)

Element ``i`` of a stream is a pure function of ``(seed, purpose, step, i)``, computed by Philox4x32-10
(:mod:`lotion_theory._philox`). Nothing is consumed: asking twice gives the same numbers, and a restarted or re-sharded
run asks for its part by ``start``. Give every use its own purpose ("init", "data", "rounding/layer0", ...).
"""

from __future__ import annotations

import hashlib
import math
import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from . import _philox
from ._arrays import Array, dtype_name, is_torch
from .arguments import is_integer

_WORD_LIMIT = 2**64
_INDEX_LIMIT = 2**63  # element numbers are held in signed 64-bit integers

# Counters per pass. Each keeps about ten int64 temporaries alive: 2.5 MiB on a CPU (its second-level cache), 320 MiB on
# an accelerator, where long passes hide the cost of launching a hundred small kernels.
_CPU_CHUNK = 1 << 15
_DEVICE_CHUNK = 1 << 22

# Compiling takes about as long as drawing this many numbers with numpy, so waiting for that demand at most doubles the
# cost of any program. A call costs numpy about as much as _CALL_COST numbers, however few it asks for.
_COMPILE_AFTER = 1 << 27
_CALL_COST = 1 << 13


@dataclass(frozen=True)
class _Layout:
    """How the four words of one counter become numbers of one floating type."""

    per_counter: int
    integers: Callable[..., tuple[Any, ...]]
    unit: float


_LAYOUTS = {
    "float32": _Layout(4, _philox.top24, _philox.UNIT24),
    "float64": _Layout(2, _philox.top53, _philox.UNIT53),
}
_DRAWN_FOR = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}


@dataclass(frozen=True)
class Stream:
    """An endless table of uniforms on [0, 1), named by ``seed`` (an integer in [0, 2**64)) and ``purpose`` (a string).

    The Philox key is the 64-bit BLAKE2b hash of both, so any two of ``n`` distinct streams share their numbers with
    probability about ``n**2 / 2**65``. The counter is (element index, step), low words first; streams, steps and
    elements can therefore be drawn in any order, on any machine.

    Raises TypeError or ValueError if ``seed`` is no integer in [0, 2**64) or ``purpose`` no non-empty string.
    """

    seed: int
    purpose: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "seed", _integer("seed", self.seed, _WORD_LIMIT))
        _name("purpose", self.purpose)

    def spawn(self, name: str) -> Stream:
        """The sub-stream of purpose ``"{purpose}/{name}"`` under the same seed, e.g. one per layer."""
        _name("name", name)
        return Stream(self.seed, f"{self.purpose}/{name}")

    def uniforms(
        self,
        shape: int | tuple[int, ...],
        step: int = 0,
        *,
        dtype: str | None = None,
        like: Array | None = None,
        start: int = 0,
        out: Array | None = None,
    ) -> Array:
        """Elements ``start, start + 1, ...`` of ``(seed, purpose, step)``, in C order, as an array of ``shape``.

        Args:
            shape: of the result; an integer means one dimension.
            step: an integer in [0, 2**64), e.g. the training step or the sample number; steps are independent.
            dtype: ``"float32"`` (multiples of 2**-24, one word each: word ``i % 4`` of counter ``i // 4``) or
                ``"float64"`` (multiples of 2**-53, two words each: words ``2 (i % 2)`` and the next, of counter
                ``i // 2``). By default that of ``out``, else the one suited to ``like`` (float32 for 16-bit types),
                else float32. The two share their words: draw only one of them from a step if independence matters.
            like: a numpy array or torch tensor; the result is of that kind and on its device. Its shape and values are
                not looked at.
            start: number of the first element; ``start + size`` may reach 2**63.
            out: a C-contiguous array to fill and return, of the shape, type, kind and device asked for.

        Returns:
            numbers in [0, 1), the greatest being 1 - 2**-24 (float32) or 1 - 2**-53 (float64).

        Raises:
            TypeError, ValueError: naming the argument, its value, and what is valid.
        """
        shape = _shape(shape)
        step = _integer("step", step, _WORD_LIMIT)
        size = math.prod(shape)
        start = _integer("start", start, _INDEX_LIMIT)
        if start + size > _INDEX_LIMIT:
            raise ValueError(f"start = {start} is too large for {size} elements; valid: start + size <= 2**63")
        for name, array in (("like", like), ("out", out)):
            if array is not None and not is_torch(array) and not isinstance(array, np.ndarray | np.generic):
                raise TypeError(f"{name} is a {type(array).__name__}; valid: a numpy array or a torch tensor")
        dtype = _dtype(dtype, like, out)
        if out is None:
            out = _empty(shape, dtype, like)
        else:
            _check_out(out, shape, dtype, like)
        flat = (out if is_torch(out) else np.asarray(out)).reshape(-1)
        _fill(flat, start, step, self.key(), _LAYOUTS[dtype])
        return out

    def numpy_generator(self, step: int = 0) -> np.random.Generator:
        """A numpy generator for problem data (normals, permutations, ...), independent of :meth:`uniforms`.

        Philox4x64-10 under a 128-bit hash of seed and purpose; ``step`` (in [0, 2**64)) is the highest counter word, so
        each step has 2**192 draws of its own. numpy keeps the bits fixed, but may change how a distribution uses them.
        """
        step = _integer("step", step, _WORD_LIMIT)
        key = int.from_bytes(self._hash(16), "little")
        return np.random.Generator(np.random.Philox(key=key, counter=step << 192))

    def _hash(self, size: int) -> bytes:
        message = self.seed.to_bytes(8, "little") + self.purpose.encode()
        return hashlib.blake2b(message, digest_size=size, person=b"lotion.streams").digest()

    def key(self) -> tuple[int, int]:
        """The two 32-bit key words of Philox4x32 under which :meth:`uniforms` counts."""
        key = int.from_bytes(self._hash(8), "little")
        return _philox.low32(key), _philox.high32(key)


def _fill(flat: Array, start: int, step: int, key: tuple[int, int], layout: _Layout) -> None:
    """Fill the 1-D ``flat`` with elements ``start ...``: whole counters in place, the cut ones at either end aside."""
    per, size = layout.per_counter, len(flat)
    words = (_philox.low32(step), _philox.high32(step), *key)
    head = min(-start % per, size)
    tail = (size - head) % per
    if head + tail < size:
        _writer(flat, layout)(flat[head : size - tail], (start + head) // per, *words)
    for begin, end in ((0, head), (size - tail, size)):
        if begin < end:
            counter, skip = divmod(start + begin, per)
            whole = _empty((per,), dtype_name(flat), flat)
            _writer(whole, layout)(whole, counter, *words)
            flat[begin:end] = whole[skip : skip + end - begin]


_demand = 0


def _writer(flat: Array, layout: _Layout) -> Callable[..., None]:
    """What fills whole counters of ``flat``'s kind: array operations, or the compiled loop once demand justifies it."""
    global _demand
    if is_torch(flat) and flat.device.type != "cpu":
        return partial(_write_rows, layout, _DEVICE_CHUNK)
    _demand += max(len(flat), _CALL_COST)
    compiled = _compiled(layout) if _demand >= _COMPILE_AFTER else None
    if compiled is None:
        return partial(_write_rows, layout, _CPU_CHUNK)
    return lambda out, *words: compiled(out.numpy() if is_torch(out) else out, *words)


def _write_rows(layout: _Layout, chunk: int, flat: Array, first: int, *words: int) -> None:
    """Fill ``flat`` from counter ``first`` on by numpy or torch operations on int64, ``chunk`` counters a pass.
    ``words``: two of the step, two of the key."""
    rows = flat.reshape(-1, layout.per_counter)
    for begin in range(0, len(rows), chunk):
        part = rows[begin : begin + chunk]
        index = _arange(first + begin, len(part), flat)
        drawn = layout.integers(*_philox.philox4x32(_philox.low32(index), _philox.high32(index), *words))
        for column, integers in enumerate(drawn):
            part[:, column] = integers  # at most 24 (53) bits: exact in float32 (float64)
        part *= layout.unit


@cache
def _compiled(layout: _Layout) -> Callable[..., None] | None:
    """:func:`_write_rows` as a numba loop over the same functions of :mod:`lotion_theory._philox`; None without numba.

    LLVM turns the loop over counters into vector code only if the functions are inlined into it and the stores go to a
    flat array; the pair is worth a factor of eight.
    """
    try:
        import numba
    except ImportError:
        return None
    inlined = numba.njit(forceinline=True)
    philox, low, high = inlined(_philox.philox4x32), inlined(_philox.low32), inlined(_philox.high32)
    split, per = inlined(layout.integers), layout.per_counter
    real = np.float32 if layout.unit == _philox.UNIT24 else np.float64
    unit = real(layout.unit)

    @numba.njit(nogil=True)
    def write(flat, first, s0, s1, k0, k1):
        for k in range(flat.size // per):
            integers = split(*philox(low(first + k), high(first + k), s0, s1, k0, k1))
            for column in range(per):
                flat[per * k + column] = real(integers[column]) * unit

    return write


def _arange(first: int, count: int, like: Array) -> Array:
    """``first, first + 1, ...`` as ``count`` int64 numbers of the kind and on the device of ``like``."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.arange(first, first + count, dtype=torch.int64, device=like.device)
    return np.arange(first, first + count, dtype=np.int64)


def _empty(shape: tuple[int, ...], dtype: str, like: Array) -> Array:
    """An uninitialised array of the kind and on the device of ``like`` (numpy if None)."""
    if is_torch(like):
        torch = sys.modules["torch"]
        return torch.empty(shape, dtype=getattr(torch, dtype), device=like.device)
    return np.empty(shape, dtype=dtype)


def _dtype(dtype: str | None, like: Array, out: Array) -> str:
    """The type to draw, by what was said most explicitly: ``dtype``, then ``out``, then ``like``."""
    if dtype is not None:
        if dtype not in _LAYOUTS:
            raise ValueError(f"dtype = {dtype!r}; valid: {', '.join(map(repr, _LAYOUTS))}")
        return dtype
    if out is not None:
        return dtype_name(out)
    if like is None:
        return "float32"
    if dtype_name(like) not in _DRAWN_FOR:
        valid = ", ".join(_DRAWN_FOR)
        raise TypeError(f"like has type {dtype_name(like)}; valid: {valid}, or any type if dtype is given")
    return _DRAWN_FOR[dtype_name(like)]


def _check_out(out: Array, shape: tuple[int, ...], dtype: str, like: Array) -> None:
    if dtype_name(out) not in _LAYOUTS or dtype_name(out) != dtype:
        valid = dtype if dtype in _LAYOUTS else " or ".join(_LAYOUTS)
        raise TypeError(f"out has type {dtype_name(out)}; valid: {valid}")
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; valid: the shape asked for, {shape}")
    if is_torch(out):
        if out.requires_grad:
            raise ValueError("out requires a gradient; valid: a tensor without one, e.g. out.detach()")
        usable = out.is_contiguous()
    else:
        usable = isinstance(out, np.ndarray) and out.flags.c_contiguous and out.flags.writeable
    if not usable:
        raise ValueError(f"out of shape {shape} is read-only or not C-contiguous; valid: writeable and C-contiguous")
    if like is not None and _place(like) != _place(out):
        raise ValueError(f"out is on {_place(out)} and like on {_place(like)}; valid: both in one place")


def _place(array: Array) -> str:
    return f"torch {array.device}" if is_torch(array) else "numpy"


def _integer(name: str, value: Any, limit: int) -> int:
    """``value`` as a python int in [0, limit); anything with ``__index__`` is taken, booleans are not."""
    valid = f"an integer in [0, 2**{limit.bit_length() - 1})"
    if not is_integer(value):
        what = "boolean" if isinstance(value, bool | np.bool_) else type(value).__name__
        raise TypeError(f"{name} = {value!r} is a {what}; valid: {valid}")
    number = operator.index(value)
    if not 0 <= number < limit:
        raise ValueError(f"{name} = {value!r}; valid: {valid}")
    return number


def _name(argument: str, value: Any) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{argument} = {value!r} is a {type(value).__name__}; valid: a non-empty string")
    if not value:
        raise ValueError(f"{argument} = ''; valid: a non-empty string, e.g. 'rounding'")


def _shape(shape: Any) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    return tuple(_integer("shape" if len(sizes) == 1 else f"shape[{i}]", n, _INDEX_LIMIT) for i, n in enumerate(sizes))
