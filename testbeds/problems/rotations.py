"""Orthogonal maps R that cost far less than a matrix product, for rotated problems of any size.

>>> from lotion_theory import Stream
>>> rotation = Mixing(12000, Stream(0, "rotation"))
>>> y = rotation.apply(x)  # rows R x of (n, 12000); rotation.transpose(y) gives x back
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Protocol

import numpy as np

from lotion_theory import Stream

LARGEST_DENSE = 2048
"""Largest side of a dense rotation: its QR takes about a second there, and grows with the cube."""

_RADIX = 16
_STRIP = 1 << 17  # float64 entries handled at a time: 1 MiB, so that all passes over a strip stay in the cache


class Rotation(Protocol):
    """An orthogonal matrix R of side ``size``. The results of its methods may share memory with their arguments."""

    @property
    def size(self) -> int: ...

    def apply(self, x: np.ndarray) -> np.ndarray:
        """``R v`` for the rows ``v`` of ``x`` (..., size). Raises ValueError for another last axis."""
        ...

    def transpose(self, x: np.ndarray) -> np.ndarray:
        """``Rᵀ v`` for the rows ``v`` of ``x`` (..., size): the inverse of :meth:`apply`."""
        ...

    def diagonal(self, spectrum: np.ndarray) -> np.ndarray:
        """Exact diagonal (size,) of ``R diag(spectrum) Rᵀ``: ``Σ_j R_ij² spectrum_j``."""
        ...


def walsh_hadamard(x: np.ndarray) -> np.ndarray:
    """``W v`` for the rows ``v`` of ``x`` (..., n), n a power of two; ``W_ij = (-1)^popcount(i & j) / √n``.

    W is symmetric and its own inverse. Butterflies of sixteen entries at a time, O(n log n) in all: a butterfly is then
    a small matrix product, several times faster in numpy than sums and differences of two. Raises ValueError for other
    n.
    """
    x = np.asarray(x, dtype=np.float64)
    n = x.shape[-1]
    if n < 1 or n & (n - 1):
        raise ValueError(f"the last axis has {n} entries; valid: a power of two")
    out, done = np.array(x), 1
    while done < n:
        butterfly = _butterfly(min(_RADIX, n // done))
        radix = len(butterfly)
        # Entries ``done`` apart are combined; for the first pass they are neighbours, a single matrix product.
        out = out.reshape(-1, radix) @ butterfly if done == 1 else butterfly @ out.reshape(-1, radix, done)
        done *= radix
    return out.reshape(x.shape)


@cache
def _butterfly(radix: int) -> np.ndarray:
    signs = np.ones((1, 1))
    while len(signs) < radix:
        signs = np.block([[signs, signs], [signs, -signs]])
    return signs / math.sqrt(radix)


class Identity:
    """``R = I``; nothing is copied."""

    def __init__(self, size: int) -> None:
        self.size = _checked_size(size)

    def apply(self, x: np.ndarray) -> np.ndarray:
        return _checked(x, self.size)

    def transpose(self, x: np.ndarray) -> np.ndarray:
        return _checked(x, self.size)

    def diagonal(self, spectrum: np.ndarray) -> np.ndarray:
        return _checked(spectrum, self.size)


class Hadamard:
    """``R = W D``: signs ``D``, then a Walsh-Hadamard transform ``W`` within each run of ``block`` coordinates.

    The randomized Hadamard rotation of QuIP# (arXiv 2402.04396) and QuEST (arXiv 2502.05003). ``block``: a power of two
    that divides ``size``, by default the largest one. ``signs``: ±1 per coordinate (size,), by default +1. Raises
    ValueError for other blocks and signs.
    """

    def __init__(self, size: int, block: int | None = None, signs: np.ndarray | None = None) -> None:
        self.size = _checked_size(size)
        largest = size & -size
        self.block = largest if block is None else block
        if self.block < 1 or largest % self.block:
            valid = ", ".join(str(1 << k) for k in range(largest.bit_length()))
            raise ValueError(f"block = {block}; valid for {size} coordinates, powers of two dividing them: {valid}")
        self.signs = np.ones(size) if signs is None else np.asarray(signs, dtype=np.float64)
        if self.signs.shape != (size,) or not bool((np.abs(self.signs) == 1).all()):
            raise ValueError(f"signs of shape {self.signs.shape} are not {size} numbers ±1")

    def apply(self, x: np.ndarray) -> np.ndarray:
        return self._transform(_checked(x, self.size) * self.signs)

    def transpose(self, x: np.ndarray) -> np.ndarray:
        return self._transform(_checked(x, self.size)) * self.signs

    def diagonal(self, spectrum: np.ndarray) -> np.ndarray:
        # Every R_ij² within a block is 1 / block.
        means = _checked(spectrum, self.size).reshape(-1, self.block).mean(axis=1)
        return np.repeat(means, self.block)

    def _transform(self, x: np.ndarray) -> np.ndarray:
        return walsh_hadamard(x.reshape(-1, self.block)).reshape(x.shape)


class Mixing:
    """A structured rotation of any size that spreads every coordinate over all others: O(size log size).

    Two rounds, each of random signs, a random permutation, a Walsh-Hadamard transform of the first ``2^m`` coordinates,
    random signs, and a transform of the last ``2^m``, ``2^m`` being the largest power of two in ``size``. (One
    transform a round where these are the same coordinates. Without the signs between them, two transforms of nearly the
    same coordinates nearly undo each other.) After one round the entries of R still differ in size by how often they
    were transformed; after two they are close to normal with variance 1 / size, as those of a Haar matrix are.
    """

    def __init__(self, size: int, stream: Stream) -> None:
        self.size = _checked_size(size)
        rng = stream.numpy_generator()
        power = 1 << (size.bit_length() - 1)
        self._first, self._last = slice(0, power), slice(size - power, size)
        self._rounds = []
        for _ in range(2):
            order = rng.permutation(size)
            inverse = np.empty_like(order)
            inverse[order] = np.arange(size)
            before, between = rng.integers(0, 2, size=(2, size)) * 2.0 - 1.0
            self._rounds.append((order, inverse, before, between))

    def apply(self, x: np.ndarray) -> np.ndarray:
        return _by_strips(self._apply, _checked(x, self.size))

    def transpose(self, x: np.ndarray) -> np.ndarray:
        return _by_strips(self._transpose, _checked(x, self.size))

    def diagonal(self, spectrum: np.ndarray) -> np.ndarray:
        """As :meth:`Rotation.diagonal`, from all rows of R in turn.

        No faster exact way is known: O(size² log size), seconds for 12000 coordinates, about ten minutes for 100000.
        """
        spectrum = _checked(spectrum, self.size)
        out = np.empty(self.size)
        rows = max(1, _STRIP // self.size)
        for start in range(0, self.size, rows):
            units = np.zeros((min(rows, self.size - start), self.size))
            units[np.arange(len(units)), start + np.arange(len(units))] = 1
            out[start : start + rows] = self._transpose(units) ** 2 @ spectrum
        return out

    def _apply(self, x: np.ndarray) -> np.ndarray:
        for order, _, before, between in self._rounds:
            x = np.take(x, order, axis=1)
            x *= before
            x[:, self._first] = walsh_hadamard(x[:, self._first])
            if self._last != self._first:
                x *= between
                x[:, self._last] = walsh_hadamard(x[:, self._last])
        return x

    def _transpose(self, x: np.ndarray) -> np.ndarray:
        x = np.array(x)
        for _, inverse, before, between in reversed(self._rounds):
            if self._last != self._first:
                x[:, self._last] = walsh_hadamard(x[:, self._last])
                x *= between
            x[:, self._first] = walsh_hadamard(x[:, self._first])
            x *= before
            x = np.take(x, inverse, axis=1)
        return x


class Dense:
    """``R`` block diagonal with the orthogonal ``matrices`` (blocks, n, n); a single one is a fully dense rotation."""

    def __init__(self, matrices: np.ndarray) -> None:
        self.matrices = np.asarray(matrices, dtype=np.float64)
        if self.matrices.ndim != 3 or self.matrices.shape[1] != self.matrices.shape[2]:
            raise ValueError(f"matrices have shape {self.matrices.shape}; valid: (blocks, n, n)")
        self.size = self.matrices.shape[0] * self.matrices.shape[1]

    @classmethod
    def haar(cls, size: int, stream: Stream, block: int | None = None) -> Dense:
        """Independent Haar-distributed blocks of side ``block``, by default one of side ``size``; at most 2048.

        A Gaussian matrix's QR factor Q with the signs of R's diagonal moved into it (Mezzadri, math-ph/0609050).
        """
        side = _checked_size(size) if block is None else block
        if side < 1 or size % side:
            raise ValueError(f"block = {block}; valid for {size} coordinates: a divisor of them")
        if side > LARGEST_DENSE:
            raise ValueError(f"a dense rotation of {side} coordinates is too large; valid: at most {LARGEST_DENSE}")
        q, r = np.linalg.qr(stream.numpy_generator().standard_normal((size // side, side, side)))
        return cls(q * np.copysign(1.0, np.diagonal(r, axis1=1, axis2=2))[:, None, :])

    def apply(self, x: np.ndarray) -> np.ndarray:
        return blockwise(np.swapaxes(self.matrices, 1, 2), _checked(x, self.size))

    def transpose(self, x: np.ndarray) -> np.ndarray:
        return blockwise(self.matrices, _checked(x, self.size))

    def diagonal(self, spectrum: np.ndarray) -> np.ndarray:
        return blockwise(np.swapaxes(self.matrices**2, 1, 2), _checked(spectrum, self.size))


def blockwise(matrices: np.ndarray, x: np.ndarray) -> np.ndarray:
    """``v M`` for the rows ``v`` of ``x`` (..., blocks · n), M block diagonal with ``matrices`` (blocks, n, n)."""
    count, side, _ = matrices.shape
    parts = np.swapaxes(x.reshape(-1, count, side), 0, 1)
    return np.swapaxes(parts @ matrices, 0, 1).reshape(x.shape)


def _by_strips(f: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """``f`` on the rows of ``x`` (..., n), a cache-sized strip of them at a time."""
    rows = x.reshape(-1, x.shape[-1])
    strip = max(1, _STRIP // x.shape[-1])
    if len(rows) <= strip:
        return f(rows).reshape(x.shape)
    out = np.empty_like(rows)
    for start in range(0, len(rows), strip):
        out[start : start + strip] = f(rows[start : start + strip])
    return out.reshape(x.shape)


def _checked(x: np.ndarray, size: int) -> np.ndarray:
    x = np.asarray(x, dtype=np.float64)
    if x.ndim < 1 or x.shape[-1] != size:
        raise ValueError(f"vectors have shape {x.shape}; valid: (..., {size})")
    return x


def _checked_size(size: int) -> int:
    if size < 1:
        raise ValueError(f"size = {size}; valid: at least 1")
    return size
