"""What a test problem is: a loss on batches of weights with everything that is known about it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from lotion_theory.smoothing import Quadratic


@runtime_checkable
class Problem(Protocol):
    """A loss to be quantized. Every problem is also a ``lotion_theory`` loss and can be given to its functions.

    ``name``: short and unique. ``provenance``: where its numbers come from, in a sentence. ``shape``: of the weights.
    ``curvature``: diagonal of the Hessian in ``shape`` (of a loss that is not quadratic, that of its Gauss-Newton form
    at ``optimum``). ``optimum``: a global minimiser over unquantized weights in ``shape``, None where none is known.
    """

    name: str
    provenance: str

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def curvature(self) -> np.ndarray: ...

    @property
    def optimum(self) -> np.ndarray | None: ...

    def __call__(self, points: Any) -> np.ndarray:
        """Losses (n,) of ``points`` (n, *shape)."""
        ...

    def gradient(self, points: Any) -> np.ndarray:
        """Gradients at ``points``, in their shape."""
        ...


class Part(NamedTuple):
    """One tensor of a problem's weights; a quantizer's partition applies to each part separately."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@runtime_checkable
class TrainingProblem(Problem, Protocol):
    """A problem to train on. Its weights are one flat vector of P entries, the ``parts`` one after another.

    ``start``: initial weights (P,), part of the instance. Everything random about an instance comes from its seed, so
    that all methods see the same problem, start and batches.
    """

    @property
    def parts(self) -> tuple[Part, ...]: ...

    @property
    def start(self) -> np.ndarray: ...

    def curvature_at(self, w: np.ndarray) -> np.ndarray:
        """Diagonal of the Gauss-Newton matrix of the mean loss at ``w`` (P,); of the Hessian for a quadratic."""
        ...

    def expected_loss(self, w: np.ndarray, variance: np.ndarray) -> float | None:
        """Exact ``E L(w + ε)`` for independent ε of mean zero and ``variance`` (P,); None where no form is known.

        At the cell of ``w`` and the variance of randomized rounding this is the smoothed loss.
        """
        ...

    def expected_parts(self, w: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """``(∂E/∂w at fixed variance, 2 ∂E/∂variance)`` of :meth:`expected_loss`, each (P,); None where there is none.

        For a quadratic these are ``H (w - w*)`` and the diagonal of H.
        """
        ...

    def batch_gradient(self, x: np.ndarray, step: int) -> np.ndarray:
        """Unbiased estimate (P,) of the gradient at ``x`` from the batch of ``step``, the same for every method."""
        ...


class QuadraticProblem(Quadratic):
    """A :class:`lotion_theory.Quadratic` with a positive semidefinite Hessian that is also a :class:`Problem`."""

    def __init__(
        self, name: str, hessian: np.ndarray, center: np.ndarray, provenance: str, offset: float = 0.0
    ) -> None:
        super().__init__(hessian, center, offset)
        self.name, self.provenance = name, provenance

    @property
    def shape(self) -> tuple[int, ...]:
        return self.center.shape

    @property
    def optimum(self) -> np.ndarray:
        return self.center
