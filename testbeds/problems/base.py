"""What a test problem is: a loss on batches of weights with everything that is known about it."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

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
