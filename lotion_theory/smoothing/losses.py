"""Losses the smoothing methods know more about than their values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from .._arrays import copied, is_exact, is_torch, plain, to_numpy


class Loss(Protocol):
    """A loss on batches: ``loss(points)`` maps (n, *w.shape) to (n,).

    Methods that differentiate the loss at support points also need ``gradient(points)``, (n, *w.shape) to itself.
    """

    def __call__(self, points: Any) -> Any: ...


def values_of(loss: Loss, points: np.ndarray) -> np.ndarray:
    """``loss(points)``, (n,), for points (n, *w.shape), of which the loss gets a copy.

    Raises ValueError for values of another shape or complex ones, and where the loss fails on a batch but takes a
    single point.
    """
    values = _called(loss, points)
    if isinstance(loss, Quadratic | _Pointwise):
        return values
    if values.shape != (len(points),):
        n = len(points)
        raise ValueError(f"the loss returned shape {values.shape} for {n} points; expected ({n},). {_hint(points)}")
    # A loss that sums over the points instead of the weights is found out by its shape, unless the numbers agree.
    if 1 < len(points) in points.shape[1:] and (one := _called(loss, points[:1])).shape != (1,):
        raise ValueError(f"the loss returned shape {one.shape} for 1 point; expected (1,). {_hint(points[:1])}")
    return values


def _called(loss: Loss, points: np.ndarray) -> np.ndarray:
    if isinstance(loss, Quadratic):
        return loss(points)
    if not callable(loss):
        raise TypeError(f"the loss is a {type(loss).__name__}; valid: a function of a batch of points, or a Quadratic")
    try:
        values = _array(loss(copied(points)))
    except Exception as error:
        if isinstance(loss, _Pointwise) or not _takes_one(loss, points):
            raise
        text = f"the loss fails on a batch of points ({type(error).__name__}: {error}). {_hint(points)}"
        raise ValueError(text) from error
    if values.dtype.kind == "c":
        raise ValueError(f"the loss returned {values.dtype} values; expected real numbers")
    return values


def _array(values: Any) -> np.ndarray:
    return to_numpy(values) if is_torch(values) else np.asarray(values)


def _takes_one(loss: Loss, points: np.ndarray) -> bool:
    try:
        return _array(loss(copied(points[0]))).size == 1
    except Exception:
        return False


def _hint(points: np.ndarray) -> str:
    return (
        f"A loss takes a batch of points, here a numpy array of shape {points.shape}; lotion_theory.pointwise makes "
        "one from a function of a single point"
    )


def slopes_of(loss: Loss, points: np.ndarray) -> np.ndarray:
    """``loss.gradient(points)``, of the shape of ``points``; ValueError where there is none or it has another shape."""
    if not hasattr(loss, "gradient"):
        raise ValueError(
            "this gradient differentiates the loss at support points: give the loss a batched gradient(points) method, "
            "or hold the lattice fixed (lattice='detached')"
        )
    if isinstance(loss, Quadratic):
        return loss.gradient(points)
    slopes = _array(loss.gradient(copied(points)))
    if slopes.shape != points.shape:
        raise ValueError(f"the loss's gradient returned shape {slopes.shape}; expected {points.shape}. {_hint(points)}")
    return slopes


def has_curvature(loss: Loss) -> bool:
    """Whether :func:`curvatures_of` has one."""
    return isinstance(loss, Quadratic) or hasattr(loss, "curvature_at")


def curvatures_of(loss: Loss, points: np.ndarray) -> np.ndarray:
    """Diagonals of the curvature at ``points`` (n, *w.shape), of their shape: those of ``loss.curvature_at(w)``, which
    takes a single point, or of a :class:`Quadratic`. ValueError where there are none or they have another shape."""
    if isinstance(loss, Quadratic) and not hasattr(loss, "curvature_at"):
        return np.broadcast_to(loss.curvature, points.shape)
    if not has_curvature(loss):
        raise ValueError(
            "this needs the loss' curvature: give the loss a method curvature_at(w), for one point, of its shape"
        )
    measured: Any = loss
    found = np.array([_array(measured.curvature_at(copied(point))) for point in points])
    if found.shape != points.shape:
        raise ValueError(f"the loss's curvature_at returned shape {found.shape[1:]}; expected {points.shape[1:]}")
    return found


def pointwise(f: Callable[[Any], float], gradient: Callable[[Any], Any] | None = None) -> Loss:
    """A batched loss from a function of one weight array, and optionally its gradient.

    Used, it raises ValueError where ``f`` returns something else than one number.
    """
    return _Pointwise(f, gradient)


class _Pointwise:
    def __init__(self, f: Callable[[Any], float], gradient: Callable[[Any], Any] | None) -> None:
        self._f, self._gradient = f, gradient

    def __call__(self, points: Any) -> np.ndarray:
        values = [_array(self._f(p)) for p in points]
        for value in values:
            if value.size != 1:
                raise ValueError(
                    f"the function given to pointwise returned shape {value.shape} for one point of shape "
                    f"{points.shape[1:]}; expected one number"
                )
        return np.array([value.item() for value in values])

    def gradient(self, points: Any) -> np.ndarray:
        if self._gradient is None:
            raise ValueError("this method differentiates the loss: give pointwise(f, gradient) its gradient")
        return np.array([self._gradient(p) for p in points])


class Quadratic:
    """``L(w) = ½ (w - center)ᵀ H (w - center) + offset`` on real weights of any shape with d entries.

    ``hessian``: (d, d) symmetric, or (d,) for a diagonal one; both arrays are copied. Works on float arrays and on
    exact object arrays.
    """

    def __init__(self, hessian: np.ndarray, center: np.ndarray, offset: float = 0) -> None:
        self.hessian, self.center = (
            copied(to_numpy(plain(x, name))) for x, name in ((hessian, "hessian"), (center, "center"))
        )
        self.offset = offset
        d = self.center.size
        if self.hessian.shape not in ((d,), (d, d)):
            raise ValueError(f"hessian has shape {self.hessian.shape}, expected ({d},) or ({d}, {d}) for {d} weights")
        for name, array in (("hessian", self.hessian), ("center", self.center)):
            if not is_exact(array) and not np.isfinite(array).all():
                raise ValueError(f"{name} holds NaN or infinity")
        if self.hessian.ndim == 2 and not bool((self.hessian == self.hessian.T).all()):
            raise ValueError("hessian is not symmetric")

    def centred(self, points: np.ndarray) -> np.ndarray:
        """``w - center`` of every point as rows, (n, d); ValueError for points of another shape."""
        if points.shape[1:] != self.center.shape:
            raise ValueError(
                f"points have shape {points.shape}, expected (n, {', '.join(map(str, self.center.shape))})"
            )
        return (points - self.center).reshape(len(points), -1)

    def product(self, vectors: np.ndarray) -> np.ndarray:
        """``H v`` for rows ``v`` of (n, d)."""
        return vectors * self.hessian if self.hessian.ndim == 1 else vectors @ self.hessian

    def __call__(self, points: np.ndarray) -> np.ndarray:
        v = self.centred(points)
        return (v * self.product(v)).sum(axis=1) / 2 + self.offset

    def gradient(self, points: np.ndarray) -> np.ndarray:
        """``H (w - center)``, of the points' shape."""
        return self.product(self.centred(points)).reshape(points.shape)

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
