"""Test problems: losses on which rounding schemes and training methods are compared."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from .base import Part, Problem, QuadraticProblem, TrainingProblem
from .descriptor import Descriptor, Diverged, Trainer
from .linear_regression import linear_regression
from .minilm import find_minilm, float32_weights
from .mlp import digits_mlp
from .real_layer import RealLayer, real_layer, real_layer_rows
from .small_nets import relu_net, tanh_net
from .two_layer import two_layer

# A problem is known by its name here, and described by ``PROBLEMS`` in its file.
FILES = {
    "linear_regression": ".linear_regression",
    "two_layer": ".two_layer",
    "relu_net": ".small_nets",
    "tanh_net": ".small_nets",
    "digits_mlp": ".mlp",
    "power_law": ".linear_regression",
    "real_layer": ".real_layer",
    "decoder": "..lm.runs",
    "smollm2": "..quantizing.networks",
    "minilm": "..quantizing.networks",
}


Wanted = Callable[[Descriptor], Any]


def names(offering: Wanted | None = None) -> tuple[str, ...]:
    """All problems that experiments may name, or those whose descriptor offers something."""
    return tuple(name for name in FILES if offering is None or offering(descriptor(name)))


def descriptor(name: Any, offering: Wanted | None = None) -> Descriptor:
    """The descriptor of the problem called ``name``.

    Raises ValueError, listing those whose descriptor offers what is wanted, for an unknown one or one that does not.
    """
    if isinstance(name, str) and name in FILES:
        (found,) = [one for one in import_module(FILES[name], __name__).PROBLEMS if one.name == name]
        if offering is None or offering(found):
            return found
    raise ValueError(f"unknown problem {name!r}; valid: {', '.join(names(offering))}")


def training_problem(config: Mapping[str, Any], seed: int) -> TrainingProblem:
    """The instance ``seed`` of ``{"name": ..., setting: value, ...}``; ValueError for unknown names and settings."""
    settings = dict(config)
    name = settings.pop("name", None)
    make = descriptor(name, lambda found: found.make).make
    assert make is not None, "such problems were asked for"
    valid = [key for key in inspect.signature(make).parameters if key != "seed"]
    for key in settings:
        if key not in valid:
            raise ValueError(f"problem {name} has no setting {key!r}; valid: {', '.join(valid)}")
    return make(**settings, seed=seed)


__all__ = [
    "Descriptor", "Diverged", "Part", "Problem", "QuadraticProblem", "RealLayer", "Trainer", "TrainingProblem",
    "descriptor", "digits_mlp", "find_minilm", "float32_weights", "linear_regression", "names", "real_layer",
    "real_layer_rows", "relu_net", "tanh_net", "training_problem", "two_layer",
]  # fmt: skip
