"""What the learned rounding schemes share: Adam, and a unit in which their settings mean the same on every case."""

from __future__ import annotations

import math
from collections.abc import Callable

from .._arrays import Array
from ..functions import square_root
from .base import Case


class Adam:
    """Directions of Adam (arXiv 1412.6980, algorithm 1): ``x -= rate * adam(gradient)``; arrays of one shape."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), epsilon: float = 1e-8) -> None:
        self.betas, self.epsilon = betas, epsilon
        self._step = 0
        self._mean: Array | float = 0.0
        self._square: Array | float = 0.0

    def __call__(self, gradient: Array) -> Array:
        """``m / (sqrt(v) + ε)`` with the bias-corrected running means m of the gradients and v of their squares."""
        one, two = self.betas
        self._step += 1
        self._mean = one * self._mean + (1 - one) * gradient
        self._square = two * self._square + (1 - two) * gradient**2
        mean = self._mean / (1 - one**self._step)
        return mean / (square_root(self._square / (1 - two**self._step)) + self.epsilon)


def rounding_scale(case: Case, key: str, gap: Callable[[Case], Array]) -> float:
    """``mean H_jj gap²`` over all weights: the size of the losses at stake, by which they are divided; 1 if it is 0.

    With ``mean H_jj = 1`` and gaps of 1 it is 1, the normal form in which AdaRound's λ is quoted. ``gap``: gives the
    gaps (rows, n) of a part of the case; ``key``: its name.
    """
    return case.mean_of_all(key, lambda part: part.curvature * gap(part) ** 2) or 1.0


def cell_gap(case: Case) -> Array:
    """Distances (rows, n) of the levels around the weights."""
    lo, hi = case.grid.bracket(case.weights)
    return hi - lo


def cosine(progress: float) -> float:
    """Cosine decay of a rate from 1 at ``progress`` 0 to 0 at 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def check(name: str, value: float, valid: bool, needs: str) -> None:
    """ValueError ``name=value: needs ...`` unless ``valid``."""
    if not valid:
        raise ValueError(f"{name}={value}: needs {needs}")
