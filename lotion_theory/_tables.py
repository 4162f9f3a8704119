"""Exact numbers in arrays: tables of constants, what is looked up in them, powers of two."""

from __future__ import annotations

import sys
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np

from ._arrays import BITS, Array, Deferred, is_exact, is_torch, is_traced, namespace, torch_tables
from ._lookups import bins


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


# Tables of torch that are kept.
_MOST = 512


def _torch_table(values: tuple[Fraction, ...], dtype: Any, device: Any) -> Any:
    known, key = torch_tables(), (values, dtype, device)
    table = known.get(key)
    if table is None:
        torch = sys.modules["torch"]
        table = torch.tensor([float(v) for v in values], dtype=torch.float64).to(dtype).to(device)
        if is_traced() or type(table) is torch.Tensor:  # no stand-in of a mode of the user's
            if len(known) >= _MOST:
                known.clear()
            known[key] = table
    return table


def take(table: Array, index: Array) -> Array:
    """``table[index]`` for an index array of any shape."""
    return table[index]


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
    key = (np.abs(x).view(BITS[x.dtype.itemsize]) >> shift) - least
    key = np.clip(key, 0, size - 1) + size * (x < 0)
    return np.frombuffer(places, np.int32)[key].astype(np.int64)


@lru_cache(maxsize=512)
def _middles(values: tuple[Fraction, ...]) -> Values:
    return Values((a + b) / 2 for a, b in pairwise(values))


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


def first_index(like: Array) -> Array:
    """The index 0 for every entry of ``like``, whatever its values."""
    if isinstance(like, Deferred):
        return floor_index(0 * like)  # type: ignore[operator]
    if is_torch(like):
        return like.new_zeros(like.shape, dtype=sys.modules["torch"].int64)
    return np.zeros(like.shape, np.int64)


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
