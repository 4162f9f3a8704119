"""What the core does with an array, whether it is numpy's, torch's or exact.

Three kinds of array are understood: numpy float arrays (float64/32/16, and bfloat16 through ml_dtypes), torch tensors
of the same types, and numpy *object* arrays of ``fractions.Fraction``, on which every law is computed exactly.

16-bit inputs are worked on in float32 and rounded back once, so that each lattice level is a value of the input's own
type.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import array_api_compat
import numpy as np

from ._bins import bins

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


def is_exact(x: Array) -> bool:
    """Whether ``x`` is an object array, i.e. exact rational arithmetic."""
    return isinstance(x, np.ndarray) and x.dtype == object


def namespace(x: Array) -> Any:
    """The array-API namespace of ``x`` (numpy's for object arrays)."""
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
    """ValueError if ``x`` holds a NaN or an infinity, naming how many and where the first one is."""
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
    return astype(astype(x, name), "float32") if name in _SIXTEEN_BIT else x


def store_level(x: Array, name: str) -> Array:
    """A lattice level rounded to the storage type, and clipped to its finite range: levels never overflow."""
    limit = largest(name)
    return x if limit is None else store(namespace(x).clip(x, -limit, limit), name)


def precision(name: str) -> int:
    """Significant bits of a float type."""
    return {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}[name]


def largest(name: str) -> float | None:
    """Largest finite value of a float type; None for exact arrays."""
    if name == "object":
        return None
    return (2.0 - 2.0**-7) * 2.0**127 if name == "bfloat16" else float(np.finfo(name).max)


class Values(tuple):
    """A tuple of exact numbers that hashes itself once: hashing hundreds of Fractions per call would be what small
    arrays spend their time on."""

    _hash: int

    def __hash__(self) -> int:
        try:
            return self._hash
        except AttributeError:
            self._hash = super().__hash__()
            return self._hash

    def __reduce__(self) -> tuple[type[Values], tuple[tuple[Fraction, ...]]]:
        # Without the hash, which another interpreter may compute in another way.
        return Values, (tuple(self),)


def constants(values: tuple[Fraction, ...], like: Array) -> Array:
    """A 1-D table of exact ``values`` in the type and on the device of ``like``."""
    if isinstance(like, Deferred):
        return like.table(_numpy_table(values, like.dtype))
    if is_exact(like):
        return _exact_table(values)
    if is_torch(like):
        return _torch_table(values, like.dtype, like.device)
    return _numpy_table(values, like.dtype)


@lru_cache(maxsize=512)
def _exact_table(values: tuple[Fraction, ...]) -> np.ndarray:
    table = np.empty(len(values), dtype=object)
    table[:] = values
    return table


@lru_cache(maxsize=512)
def _numpy_table(values: tuple[Fraction, ...], dtype: np.dtype) -> np.ndarray:
    # Rounding through float64 is innocuous for quotients of small integers: 53 >= 2 * 24 + 2 bits.
    with np.errstate(over="ignore"):  # The table of powers of two ends in infinities for narrow types.
        return np.array([float(v) for v in values]).astype(dtype)


@lru_cache(maxsize=512)
def _torch_table(values: tuple[Fraction, ...], dtype: Any, device: Any) -> Any:
    torch = sys.modules["torch"]
    return torch.tensor([float(v) for v in values], dtype=torch.float64).to(dtype).to(device)


def number(value: Fraction | int, like: Array) -> Any:
    """A scalar constant for arithmetic with ``like``: a Fraction for exact arrays, else a Python float."""
    return Fraction(value) if is_exact(like) else float(value)


def take(table: Array, index: Array) -> Array:
    """``table[index]`` for an index array of any shape."""
    return table[index]


_BITS = {4: np.int32, 8: np.int64}


def beside(values: tuple[Fraction, ...], x: Array) -> Array:
    """Per entry of ``x`` the place, in the increasing ``values``, of one with no other between it and ``x``."""
    if isinstance(x, Deferred):
        return x.beside(constants(values, x))
    middles = constants(_middles(values), x)
    if is_torch(x):
        return at_most(middles, x.detach())
    return np.searchsorted(middles, x, side="right") if is_exact(x) else _beside(constants(values, x), middles, x)


# Up to this many comparisons are faster than looking up bins.
_FEW = 16


def at_most(values: Array, x: Array) -> Array:
    """How many of the increasing ``values``, floats of the kind of ``x``, are not above each entry of ``x``."""
    if is_torch(x):
        return sys.modules["torch"].bucketize(x.contiguous(), values, right=True)
    if len(values) > _FEW:
        return np.searchsorted(values, x, side="right")
    # Without ``searchsorted``, which takes a branch per bit.
    count = np.zeros(x.shape, np.uint8)
    for value in values:
        count += x >= value
    return count.astype(np.int64)


def _beside(table: np.ndarray, middles: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Through bins where there are many."""
    found = None if len(middles) <= _FEW else bins(table.tobytes(), str(table.dtype))
    if found is None:
        return at_most(middles, x)
    shift, least, size, places = found
    key = (np.abs(x).view(_BITS[x.dtype.itemsize]) >> shift) - least
    key = np.clip(key, 0, size - 1) + size * (x < 0)
    return np.frombuffer(places, np.int32)[key].astype(np.int64)


@lru_cache(maxsize=512)
def _middles(values: tuple[Fraction, ...]) -> Values:
    return Values((a + b) / 2 for a, b in pairwise(values))


def choose(mask: Array, a: Array, b: Array) -> Array:
    """``a`` where ``mask`` is true, else ``b``; ``a`` and ``b`` are of one type."""
    plain = isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype
    if not plain or a.dtype.itemsize not in _BITS or a.dtype.kind not in "fi":
        return namespace(a).where(mask, a, b)
    # By bits: numpy's where takes ten times as long.
    bits = _BITS[a.dtype.itemsize]
    first, second, every = a.view(bits), b.view(bits), np.negative(mask.astype(bits))
    out = np.bitwise_and(first ^ second, every)
    return np.bitwise_xor(out, second).view(a.dtype)


def one_way(mask: Array, like: Array) -> Array:
    """1 where ``mask`` is true, else -1; of numpy of the type of ``like``."""
    return 2 * mask.astype(like.dtype) - 1 if isinstance(mask, np.ndarray) else namespace(mask).where(mask, 1, -1)


def may_hold(mask: Array) -> bool:
    """Whether ``mask`` is true somewhere; of recorded arrays nothing is known."""
    return isinstance(mask, Deferred) or bool(mask.any())


@lru_cache(maxsize=512)
def line(values: tuple[Fraction, ...]) -> tuple[int, int] | None:
    """``(first, scale)``, integers with ``values[k] = (k + first) / scale``; None where there are none."""
    scale = 1 / (values[1] - values[0])
    first = values[0] * scale
    fits = scale.denominator == first.denominator == 1 and all(v * scale - first == k for k, v in enumerate(values))
    return (int(first), int(scale)) if fits else None


def values_at(values: tuple[Fraction, ...], index: Array, like: Array) -> Array:
    """Entries of exact ``values`` in the type and on the device of ``like``. ``index``: integers; for numpy also whole
    numbers in the type of ``like``, of values that have a :func:`line`."""
    if isinstance(index, np.ndarray) and index.dtype.kind == "f":
        found = line(values)
        assert found is not None, "numbers of levels are floats where levels are on a line"
        first, scale = found
        # The quotient of two integers is rounded once, as the entries of a table are.
        return index + first if scale == 1 else (index + first) / scale
    return take(constants(values, like), index)


def floor_index(x: Array) -> Array:
    """``floor(x)`` as int64 indices; integers stay as they are."""
    if isinstance(x, Deferred):
        return x if x.dtype.kind == "i" else x.floor_index()
    if is_torch(x):
        return x.detach().floor().to(sys.modules["torch"].int64) if x.is_floating_point() else x
    return x if x.dtype.kind == "i" else np.floor(x).astype(np.int64)


def exponent(x: Array) -> Array:
    """The integer ``e`` with ``2**e <= |x| < 2**(e+1)``; exact (no logarithm), unspecified at 0."""
    if isinstance(x, Deferred):
        return x.exponent()
    if is_torch(x):
        return sys.modules["torch"].frexp(x.detach()).exponent.to(sys.modules["torch"].int64) - 1
    if is_exact(x):
        return np.vectorize(_fraction_exponent, otypes=[np.int64])(x)
    return np.frexp(x)[1].astype(np.int64) - 1


def _fraction_exponent(x: Fraction) -> int:
    if x == 0:
        return 0
    x = abs(x)
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if x >= Fraction(2) ** e else e - 1


_LOWEST_POWER, _HIGHEST_POWER = -1074, 1023
_POWERS = Values(Fraction(2) ** e for e in range(_LOWEST_POWER, _HIGHEST_POWER + 1))


def power_of_two(e: Array, like: Array) -> Array:
    """``2.0**e`` for integer ``e``, exactly, in the type of ``like`` (a table look-up: ``pow`` may be an ulp off)."""
    if isinstance(like, Deferred):
        return e.power_of_two(str(like.dtype))
    if is_exact(like):
        return np.vectorize(lambda k: Fraction(2) ** int(k), otypes=[object])(e)
    table = constants(_POWERS, like)
    return table[namespace(e).clip(e, _LOWEST_POWER, _HIGHEST_POWER) - _LOWEST_POWER]


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
        while x.shape[1] % 2 == 0:  # by halves, for numpy is slow at short rows
            half = x.shape[1] // 2
            x = np.maximum(x[:, :half], x[:, half:])
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
    return out if limit is None else namespace(x).clip(out, -limit, limit)


def square_root(x: Array) -> Array:
    """``√x``; for exact arrays the rational root, ValueError where it is irrational."""
    if isinstance(x, Deferred):
        return x.square_root()
    if is_exact(x):
        return np.vectorize(_rational_root, otypes=[object])(x)
    return x**0.5 if is_torch(x) else np.sqrt(x)


def exp(x: Array) -> Array:
    """``e^x`` of floats."""
    return x.exp() if is_torch(x) else np.exp(x)


def log(x: Array) -> Array:
    """The natural logarithm of positive floats."""
    return x.log() if is_torch(x) else np.log(x)


def sigmoid(x: Array) -> Array:
    """``1 / (1 + e^-x)`` of floats."""
    if is_torch(x):
        return x.sigmoid()
    from scipy.special import expit

    return expit(x)


def tanh(x: Array) -> Array:
    """The hyperbolic tangent of floats."""
    return x.tanh() if is_torch(x) else np.tanh(x)


def cos(x: Array) -> Array:
    """The cosine of floats."""
    return x.cos() if is_torch(x) else np.cos(x)


def _rational_root(x: Fraction) -> Fraction:
    root = Fraction(math.isqrt(x.numerator), math.isqrt(x.denominator))
    if root * root != x:
        raise ValueError(f"the square root of {x} is irrational: this law has no exact rational form")
    return root
