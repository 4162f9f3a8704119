"""What a rounding scheme is given, and how it describes itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from .. import Quantizer, Stream
from .._arrays import require_finite
from .grid import Grid


@dataclass(frozen=True)
class Case:
    """Rows that share a Hessian: ``L(Q) = ½ Σ_r (Q_r - W_r)ᵀ H (Q_r - W_r)`` on a frozen lattice.

    ``weights`` W: (rows, n), the minimiser over unquantized weights. ``hessian``: (n, n), symmetric positive
    semidefinite. ``grid``: the lattice on which Q must lie. One row is a plain quadratic.
    """

    hessian: np.ndarray
    weights: np.ndarray
    grid: Grid

    @classmethod
    def make(cls, hessian: np.ndarray, weights: np.ndarray, q: Quantizer | str) -> Case:
        """The case with the lattice that ``q`` (absmax scale, balanced codebook) gives ``weights`` (n,) or (rows, n).

        Raises ValueError for other scale rules and codebooks, for shapes that do not fit and values not finite.
        """
        q = Quantizer.parse(q)
        w = np.atleast_2d(np.asarray(weights, dtype=np.float64))
        h = np.asarray(hessian, dtype=np.float64)
        for name, array in (("weights", w), ("hessian", h)):
            require_finite(array, name)
        if h.shape != 2 * w.shape[1:]:
            raise ValueError(f"the Hessian has shape {h.shape}, expected {2 * w.shape[1:]} for rows of {w.shape[1]}")
        return cls(h, w, Grid.balanced(absmax_tops(q, w), q.codebook))

    def loss(self, points: np.ndarray) -> np.ndarray:
        """Losses (k,) of quantized ``points`` (k, rows, n)."""
        error = points - self.weights
        return (error * (error @ self.hessian)).sum(axis=(1, 2)) / 2

    @cached_property
    def curvature(self) -> np.ndarray:
        """Diagonal of the Hessian, (n,)."""
        return np.diagonal(self.hessian).copy()


def absmax_tops(q: Quantizer, w: np.ndarray) -> np.ndarray:
    """Largest magnitude of each weight's block, in ``w``'s shape; ValueError unless ``q`` is absmax and balanced."""
    if not q.is_absmax:
        raise ValueError(f"format {q}: needs an absmax scale and a codebook from -c to c, e.g. int4, e2m1, nf4")
    blocks = q.partition.to_blocks(np.abs(w))
    top = np.broadcast_to(blocks.max(axis=1, keepdims=True), blocks.shape).reshape(w.shape)
    return np.where(top == 0, 1.0, top)  # an all-zero block stays zero on any lattice that has a zero


@dataclass(frozen=True)
class Rounder:
    """A rounding scheme: ``run(case, settings, stream)`` returns quantized weights (rows, n).

    ``information``: what it is told ("none", "diagonal of H", "H"). ``grid``: "fixed", or "searched" where it may
    change the scale. ``source``: paper and equation. ``settings``: defaults; ``tuning``: values tried per setting.
    ``evaluations``: how many products with H one run costs, as text, e.g. "1 Cholesky" or "steps".
    """

    name: str
    run: Callable[[Case, Mapping[str, Any], Stream], np.ndarray]
    information: str
    grid: str
    source: str
    evaluations: str
    settings: Mapping[str, Any]
    tuning: Mapping[str, tuple[Any, ...]]

    def __call__(self, case: Case, stream: Stream, **settings: Any) -> np.ndarray:
        """Round ``case`` with ``settings`` over the defaults; ValueError for a setting it does not have."""
        for key in settings:
            if key not in self.settings:
                raise ValueError(f"{self.name} has no setting {key!r}; valid: {', '.join(self.settings) or 'none'}")
        return self.run(case, {**self.settings, **settings}, stream)
