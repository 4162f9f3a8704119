"""Test problems: losses on which rounding schemes and training methods are compared."""

from .base import Problem, QuadraticProblem
from .minilm import find_minilm, float32_weights
from .real_layer import RealLayer, real_layer, real_layer_rows

__all__ = [
    "Problem", "QuadraticProblem", "RealLayer", "find_minilm", "float32_weights", "real_layer", "real_layer_rows",
]  # fmt: skip
