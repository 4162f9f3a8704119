"""What the core does with an array, whether it is numpy's, torch's or exact.

Three kinds of array are understood: numpy float arrays (float64/32/16, and bfloat16 through ml_dtypes), torch tensors
of the same types, and numpy *object* arrays of ``fractions.Fraction``, on which every law is computed exactly.

16-bit inputs are worked on in float32 and rounded back once, so that each lattice level is a value of the input's own
type.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import array_api_compat
import array_api_compat.numpy
import numpy as np

Array = Any
"""A numpy array or a torch tensor."""

_SIXTEEN_BIT = ("float16", "bfloat16")
_FLOATS = ("float64", "float32", *_SIXTEEN_BIT)
_COMPLEX_PARTS = {"complex64": "float32", "complex128": "float64"}


class Deferred:
    """An array whose operations are recorded, to be compiled: see :mod:`lotion_theory.fused`. The functions below that
    tell libraries apart call its methods of the same purpose."""

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{type(self).__name__} has no {name}")


def is_torch(x: Array) -> bool:
    """Whether ``x`` is a torch tensor; never imports torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


# Devices whose values Python may ask for without waiting.
READ_DEVICES = frozenset({"cpu"})


class _Here(threading.local):
    tables: dict[Any, Any] | None = None


_here = _Here()


@contextmanager
def tracing() -> Iterator[None]:
    """While a compiler of torch records what is done to tensors: on any device, no value is asked for, and constants
    are made anew."""
    before, _here.tables = _here.tables, {}
    try:
        yield
    finally:
        _here.tables = before


def is_traced() -> bool:
    """Whether :func:`tracing` is on in this thread."""
    return _here.tables is not None


_tables: dict[Any, Any] = {}


def torch_tables() -> dict[Any, Any]:
    """Where tensors of constants are kept, for as long as they may be used."""
    return _tables if _here.tables is None else _here.tables


def is_compiled() -> bool:
    """Whether ``torch.compile`` is about to read the calling code, rather than to record what it does."""
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_dynamo_compiling()


def is_unread(x: Array) -> bool:
    """Whether Python is not to decide on values of ``x``: a tensor on an accelerator, where it would wait for all that
    is under way, or one that is being compiled. What a value would decide is then computed both ways, and weights that
    would be refused become NaN."""
    return is_torch(x) and (is_traced() or x.device.type not in READ_DEVICES)


def is_exact(x: Array) -> bool:
    """Whether ``x`` is an object array, i.e. exact rational arithmetic."""
    return isinstance(x, np.ndarray) and x.dtype == object


def namespace(x: Array) -> Any:
    """The array-API namespace of ``x`` (numpy's for object arrays)."""
    if type(x) is np.ndarray:
        return array_api_compat.numpy
    if isinstance(x, Deferred):
        return x.__array_namespace__()
    return array_api_compat.array_namespace(x)


def device(x: Array) -> Any:
    """Where ``x`` is, as functions of its :func:`namespace` take it."""
    return array_api_compat.device(x)


def alike(x: np.ndarray, like: Array) -> Array:
    """``x``, of numpy, as an array of the library and in the place of ``like``; its type stays."""
    return sys.modules["torch"].from_numpy(np.ascontiguousarray(x)).to(like.device) if is_torch(like) else x


_NAMES: dict[Any, str] = {}


def dtype_name(x: Array) -> str:
    """``"float32"``, ``"bfloat16"``, ``"object"``, ... for either library."""
    name = _NAMES.get(x.dtype)
    if name is None:  # numpy takes microseconds to spell it
        name = _NAMES[x.dtype] = str(x.dtype).removeprefix("torch.")
    return name


def plain(x: Any, name: str) -> Array:
    """``x`` as a dense tensor, or as a numpy array and no subclass of it; of any type.

    Raises TypeError for what holds more, or less, than an array of values: masked arrays and ``np.matrix``; sparse and
    nested tensors, and those without values.
    """
    if is_torch(x):
        if x.is_nested or x.layout != sys.modules["torch"].strided:
            what = "nested" if x.is_nested else f"of layout {x.layout}"
            raise TypeError(f"{name} is a tensor {what}; valid: a dense one, e.g. {name}.to_dense()")
        if x.is_meta:
            raise TypeError(f"{name} is a tensor on the meta device, which holds no values")
        return x
    masked = sys.modules.get("numpy.ma")  # which numpy imports when it is first asked for
    if masked is not None and isinstance(x, masked.MaskedArray):
        raise TypeError(f"{name} is a masked array, whose mask would be lost; give {name}.filled(...) or a part of it")
    if isinstance(x, np.matrix):
        raise TypeError(f"{name} is a np.matrix; give np.asarray({name})")
    return np.asarray(x)


def as_array(w: Any, name: str = "w") -> Array:
    """``w`` as an array this package can work on; lists and scalars become float64 (or exact, if they hold Fractions).

    Raises TypeError for integer and boolean data (a silent cast would hide a bug), ValueError for empty input, and as
    :func:`plain`.
    """
    is_array = is_torch(w) or isinstance(w, np.ndarray)
    w = plain(w, name)
    kind = dtype_name(w)
    if not is_array and w.dtype.kind in "iu":
        raise TypeError(f"{name} has integer type {kind}; give floats, e.g. np.asarray({name}, dtype=float)")
    if kind not in _FLOATS and kind not in _COMPLEX_PARTS and kind != "object":
        valid = f"valid types: {', '.join((*_FLOATS, *_COMPLEX_PARTS))}, object (Fraction)"
        if not is_torch(w) and not w.dtype.isnative:
            valid += f", in this machine's byte order: {name}.astype({name}.dtype.newbyteorder('='))"
        raise TypeError(f"{name} has type {kind}; {valid}")
    if math.prod(w.shape) == 0:
        raise ValueError(f"{name} is empty (shape {tuple(w.shape)}); there is nothing to quantize")
    return w


def need_together(x: Array, w: Array, name: str, advice: str = "") -> None:
    """TypeError unless ``x`` is of the library of ``w``, ValueError unless it is on its device. ``advice``: what to
    do."""
    if is_torch(x) != is_torch(w):
        here, there = ("torch", "numpy") if is_torch(x) else ("numpy", "torch")
        advice = advice or (f"give {name}.detach().cpu().numpy()" if is_torch(x) else f"give torch.as_tensor({name})")
        hint = " (laws and smoothed losses are computed in numpy)" if is_torch(x) else ""
        raise TypeError(f"{name} is of {here}, w of {there}; they must come from the same library: {advice}{hint}")
    # Only a single number on the CPU goes with tensors elsewhere.
    if is_torch(w) and x.device != w.device and not (x.ndim == 0 and x.device.type == "cpu"):
        raise ValueError(f"{name} is on {x.device} and w on {w.device}; they must be on one device")


def doubles(x: Any, name: str) -> np.ndarray:
    """``x`` as a float64 numpy array; TypeError for complex values, and as :func:`plain`."""
    x = to_numpy(plain(x, name))
    if x.dtype.kind == "c":
        raise TypeError(f"{name} has type {x.dtype}; it must be real")
    return np.asarray(x, dtype=np.float64)


def require_finite(x: Array, name: str = "w") -> None:
    """ValueError if ``x`` holds a NaN or an infinity, naming how many and where the first one is; of a tensor that is
    unread (:func:`is_unread`) nothing is asked."""
    if is_unread(x):
        return
    if is_exact(x):
        bad = np.array([not isinstance(v, (Fraction, int)) for v in x.ravel()])
        if bad.any():
            raise TypeError(f"{name} is an object array and must hold fractions.Fraction only")
        return
    plain = x.detach() if is_torch(x) else x.astype(np.float32) if dtype_name(x) == "bfloat16" else x
    whole = namespace(plain).isfinite(plain)
    if not bool(whole.all()):
        flat = to_numpy(whole).ravel()
        raise ValueError(
            f"{name} holds {int((~flat).sum())} NaN or infinite value(s), "
            f"the first at flat index {int(np.argmin(flat))}"
        )


def finite(x: Any, name: str = "w") -> Array:
    """``x`` as :func:`as_array` takes it, without NaN and infinities; the errors of both."""
    array = as_array(x, name)
    require_finite(array, name)
    return array


def to_numpy(x: Array) -> np.ndarray:
    """A numpy copy-or-view of ``x``, detached, of the same float type (bfloat16 through ml_dtypes)."""
    if is_torch(x):
        x = x.detach().cpu().resolve_conj().resolve_neg()
        return astype(x.float().numpy(), "bfloat16") if dtype_name(x) == "bfloat16" else x.numpy()
    return np.asarray(x)


def wide(x: np.ndarray) -> np.ndarray:
    """16-bit values as float64, in which losses and gradients at them are computed; other types unchanged."""
    return x.astype(np.float64) if dtype_name(x) in _SIXTEEN_BIT else x


def working(x: Array) -> Array:
    """``x`` in the type that computations run in: float32 for 16-bit types, unchanged otherwise."""
    return astype(x, "float32") if dtype_name(x) in _SIXTEEN_BIT else x


def astype(x: Array, name: str) -> Array:
    """``x`` converted to the named float type (a no-op for exact arrays and for the type it already has)."""
    if dtype_name(x) in (name, "object"):
        return x
    if is_torch(x):
        return x.to(getattr(sys.modules["torch"], name))
    if name == "bfloat16":
        import ml_dtypes

        return x.astype(ml_dtypes.bfloat16)
    return x.astype(name)


def store(x: Array, name: str) -> Array:
    """``x`` rounded to the storage type ``name`` and brought back to the working type; levels pass through here."""
    if isinstance(x, Deferred):
        return x.stored(name)
    if name not in _SIXTEEN_BIT:
        return x
    return rounded_bits(x, name) if is_traced() and is_torch(x) else astype(astype(x, name), "float32")


def rounded_bits(x: Array, name: str) -> Array:
    """A float32 tensor rounded to a 16-bit type, ties to even, and back, written out for compilers that drop a
    conversion there and back."""
    torch = sys.modules["torch"]
    drop = 16 if name == "bfloat16" else 13
    bits = x.view(torch.int32)
    half = (1 << (drop - 1)) - 1
    rounded = ((bits + half + ((bits >> drop) & 1)) & -(1 << drop)).view(torch.float32)
    # Where all bits of a NaN are set, as on a GPU, the carry would run into its sign.
    rounded = torch.where(x.isnan(), x, rounded)
    if name == "bfloat16":
        return rounded
    # Subnormal float16 numbers are the multiples of 2^-24, the ulp of float32 just below 1.
    return torch.where(x.abs() < 2.0**-14, (x + 0.75) - 0.75, rounded)


def store_level(x: Array, name: str) -> Array:
    """A lattice level rounded to the storage type, and clipped to its finite range: levels never overflow."""
    limit = largest(name)
    return x if limit is None else store(clip(x, -limit, limit), name)


def precision(name: str) -> int:
    """Significant bits of a float type."""
    return {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[name]


def largest(name: str) -> float | None:
    """Largest finite value of a float type; None for exact arrays."""
    if name == "object":
        return None
    return (2.0 - 2.0**-7) * 2.0**127 if name == "bfloat16" else float(np.finfo(name).max)


BITS = {4: np.int32, 8: np.int64}
"""Integers of the width of floats, by bytes."""


def clip(x: Array, low: float, high: float) -> Array:
    """``x`` between two numbers."""
    # Where the array API's function takes the time of several passes.
    return np.clip(x, low, high) if type(x) is np.ndarray else namespace(x).clip(x, low, high)


def choose(mask: Array, a: Array, b: Array) -> Array:
    """``a`` where ``mask`` is true, else ``b``; ``a`` and ``b`` are of one type."""
    plain = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype
    if not plain or a.dtype.itemsize not in BITS or a.dtype.kind not in "fi":
        return namespace(a).where(mask, a, b)
    # By bits: numpy's where takes ten times as long.
    bits = BITS[a.dtype.itemsize]
    second = b.view(bits)
    if mask.shape != a.shape or mask.shape != b.shape:
        return (((a.view(bits) ^ second) * mask) ^ second).view(a.dtype)
    out = a.view(bits) ^ second
    out *= mask
    out ^= second
    return out.view(a.dtype)


def one_way(mask: Array, like: Array) -> Array:
    """1 where ``mask`` is true, else -1; of numpy of the type of ``like``."""
    if not isinstance(mask, np.ndarray):
        return namespace(mask).where(mask, 1, -1)
    out = mask.astype(like.dtype)
    out += out
    out -= 1
    return out


def is_opaque(x: Array) -> bool:
    """Whether no value of ``x`` can be asked for: it is recorded, or unread."""
    return isinstance(x, Deferred) or is_unread(x)


def may_hold(mask: Array) -> bool:
    """Whether ``mask`` is true somewhere; of opaque arrays nothing is known."""
    return is_opaque(mask) or bool(mask.any())


def holds_seldom(mask: Array) -> bool:
    """The same of what ordinary weights never meet: compiled passes take it for false, and check it."""
    return is_unread(mask) or bool(mask.any())


def nudge(x: Array, name: str, ulps: int) -> Array:
    """Move non-negative finite ``x``, a value of storage type ``name``, by ``ulps`` places in that type."""
    if isinstance(x, Deferred):
        return x.nudged(name, ulps)
    if is_exact(x):
        return x
    bits = {"float64": "int64", "float32": "int32"}.get(name, "int16")
    stored = astype(x, name)
    if is_torch(x):
        torch = sys.modules["torch"]
        moved = (stored.detach().contiguous().view(getattr(torch, bits)) + ulps).clamp(min=0).view(stored.dtype)
    else:
        moved = np.maximum(np.ascontiguousarray(stored).view(bits) + ulps, 0).astype(bits).view(stored.dtype)
    return astype(moved, dtype_name(x))


def detach(x: Array) -> Array:
    """``x`` cut from the autograd graph; numpy arrays pass through."""
    return x.detach() if is_torch(x) else x


def copied(x: Array) -> Array:
    """The same values in memory of their own."""
    return x.clone() if is_torch(x) else x.copy()


def replace_value(x: Array, value: Array, divisor: Any = 1) -> Array:
    """``value`` in the forward direction, the derivative of ``x / divisor`` in the backward one (torch); ``value``
    elsewhere. ``x`` is finite, the quotient need not be."""
    return value.detach() + (x - x.detach()) / divisor if is_torch(x) and x.requires_grad else value


def with_rate(value: Array, x: Array, rate: Callable[[], Array], divisor: Any = 1) -> Array:
    """``value`` (rows, 1), whose derivative in ``x`` (rows, n) is ``rate() / divisor`` (torch); ``value`` elsewhere."""
    if not (is_torch(x) and x.requires_grad):
        return value
    return value.detach() + ((x - x.detach()) * rate().detach()).sum(dim=1, keepdim=True) / divisor


def block_max(x: Array) -> Array:
    """Largest entry of each row of a 2-D array, shape (rows, 1). In torch, ties share the derivative equally."""
    if isinstance(x, np.ndarray) and not is_exact(x):
        while x.shape[1] % 2 == 0 and x.shape[1] > 8:  # by halves, for numpy is slow at short rows
            half = x.shape[1] // 2
            x = np.maximum(x[:, :half], x[:, half:])
        if x.shape[1] == 8:
            x = np.ascontiguousarray(x.T)
            x = np.maximum(x[:4], x[4:])
            x = np.maximum(x[:2], x[2:])
            return np.maximum(x[0], x[1])[:, None]
    if not is_torch(x):
        return x.max(axis=1, keepdims=True)
    top = x.detach().amax(dim=1, keepdim=True)
    if not x.requires_grad:
        return top
    # Not the derivative of amax, which multiplies by a mask: an infinite one would make the other entries NaN.
    hit = x.detach() == top
    share = (x - x.detach()) / hit.sum(dim=1, keepdim=True)
    return top + namespace(x).where(hit, share, 0 * top).sum(dim=1, keepdim=True)


def quotient(x: Array, divisor: Any) -> Array:
    """``x / divisor`` for a positive number or array, and the largest float, of ``x``'s sign, where it overflows."""
    limit = largest(dtype_name(x))
    with np.errstate(over="ignore"):
        out = x / divisor
    return out if limit is None else clip(out, -limit, limit)
