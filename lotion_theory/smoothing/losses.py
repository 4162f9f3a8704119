"""Losses the smoothing methods know more about than their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .._arrays import is_exact


class Loss(Protocol):
    """A loss on batches: ``loss(points)`` maps (n, *w.shape) to (n,).

    Methods that differentiate the loss at support points also need ``gradient(points)``, (n, *w.shape) to itself.
    """

    def __call__(self, points: Any) -> Any: ...


def pointwise(f: Callable[[Any], float], gradient: Callable[[Any], Any] | None = None) -> Loss:
    """A batched loss from a function of one weight array, and optionally its gradient."""
    return _Pointwise(f, gradient)


class _Pointwise:
    def __init__(self, f: Callable[[Any], float], gradient: Callable[[Any], Any] | None) -> None:
        self._f, self._gradient = f, gradient

    def __call__(self, points: Any) -> np.ndarray:
        return np.array([self._f(p) for p in points])

    def gradient(self, points: Any) -> np.ndarray:
        if self._gradient is None:
            raise ValueError("this method differentiates the loss: give pointwise(f, gradient) its gradient")
        return np.array([self._gradient(p) for p in points])


class Quadratic:
    """``L(w) = ½ (w - center)ᵀ H (w - center) + offset`` on real weights of any shape with d entries.

    ``hessian``: (d, d) symmetric, or (d,) for a diagonal one. Works on float arrays and on exact object arrays.
    """

    def __init__(self, hessian: np.ndarray, center: np.ndarray, offset: float = 0) -> None:
        self.hessian, self.center, self.offset = np.asarray(hessian), np.asarray(center), offset
        d = self.center.size
        if self.hessian.shape not in ((d,), (d, d)):
            raise ValueError(f"hessian has shape {self.hessian.shape}, expected ({d},) or ({d}, {d}) for {d} weights")
        for name, array in (("hessian", self.hessian), ("center", self.center)):
            if not is_exact(array) and not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.hessian.ndim == 2 and not bool((self.hessian == self.hessian.T).all()):
            raise ValueError("hessian is not symmetric")

    def _centred(self, points: np.ndarray) -> np.ndarray:
        if points.shape[1:] != self.center.shape:
            raise ValueError(
                f"points have shape {points.shape}, expected (n, {', '.join(map(str, self.center.shape))})"
            )
        return (points - self.center).reshape(len(points), -1)

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """``H v`` for rows ``v`` of (n, d)."""
        return vectors * self.hessian if self.hessian.ndim == 1 else vectors @ self.hessian

    def __call__(self, points: np.ndarray) -> np.ndarray:
        v = self._centred(points)
        return (v * self.product(v)).sum(axis=1) / 2 + self.offset

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """``H (w - center)``, of the points' shape."""
        return self.product(self._centred(points)).reshape(points.shape)

    @property
    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian, in the weights' shape."""
        diagonal = self.hessian if self.hessian.ndim == 1 else np.diagonal(self.hessian)
        return diagonal.reshape(self.center.shape)

    def block_products(self, blocks: np.ndarray) -> np.ndarray:
        """``H_BB δ_B`` for each block of a (blocks, n) array that tiles the flattened weights."""
        if self.hessian.ndim == 1:
            return self.hessian.reshape(blocks.shape) * blocks
        count, size = blocks.shape
        diagonal_blocks = self.hessian.reshape(count, size, count, size)[np.arange(count), :, np.arange(count), :]
        return np.matmul(diagonal_blocks, blocks[:, :, None])[:, :, 0]


def total(x: np.ndarray) -> Any:
    """Sum of all entries, a Fraction for exact arrays and a float otherwise."""
    return sum(x.ravel().tolist()) if is_exact(x) else float(x.sum())
