"""Test problems: losses on which rounding schemes and training methods are compared."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .base import Part, Problem, QuadraticProblem, TrainingProblem
from .linear_regression import linear_regression
from .minilm import find_minilm, float32_weights
from .mlp import digits_mlp
from .real_layer import RealLayer, real_layer, real_layer_rows
from .small_nets import relu_net, tanh_net
from .two_layer import two_layer

TRAINING: dict[str, Callable[..., TrainingProblem]] = {
    "linear_regression": linear_regression,
    "two_layer": two_layer,
    "relu_net": relu_net,
    "tanh_net": tanh_net,
    "digits_mlp": digits_mlp,
}
"""Problems to train on, by name; each is made from its settings and a seed."""


def training_problem(config: Mapping[str, Any], seed: int) -> TrainingProblem:
    """The instance ``seed`` of ``{"name": ..., setting: value, ...}``; ValueError for unknown names and settings."""
    settings = dict(config)
    name = settings.pop("name", None)
    if name not in TRAINING:
        raise ValueError(f"unknown problem {name!r}; valid: {', '.join(TRAINING)}")
    make = TRAINING[name]
    valid = [key for key in inspect.signature(make).parameters if key != "seed"]
    for key in settings:
        if key not in valid:
            raise ValueError(f"problem {name} has no setting {key!r}; valid: {', '.join(valid)}")
    return make(**settings, seed=seed)


__all__ = [
    "TRAINING", "Part", "Problem", "QuadraticProblem", "RealLayer", "TrainingProblem", "digits_mlp", "find_minilm",
    "float32_weights", "linear_regression", "real_layer", "real_layer_rows", "relu_net", "tanh_net",
    "training_problem", "two_layer",
]  # fmt: skip
