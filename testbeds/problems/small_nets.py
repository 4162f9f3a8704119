"""Nets of at most twelve weights, whose smoothed loss can be enumerated although no closed form is known."""

from __future__ import annotations

from typing import NamedTuple

from lotion_theory import Stream

from .descriptor import Descriptor
from .mlp import MLP, forward, layers, normal_matrices
from .tensors import join, non_negative, whole

LARGEST = 12
"""Most weights: 4096 roundings."""


class Gains(NamedTuple):
    """Variance of the weights of a layer, times its inputs."""

    teacher: float
    start: float


GAINS = {"tanh": Gains(4.0, 1.0), "relu": Gains(2.0, 2.0)}


def tanh_net(
    seed: int, width: int = 2, inputs: int = 2, samples: int = 64, noise: float = 0.0, batch: int | None = None
) -> MLP:
    """``f(x) = W2 tanh(W1 x)`` with one output, squared error on a sample of a teacher of the same form.

    ``samples`` standard normal inputs; the teacher's weights are normal with variance 4/inputs of each layer (units
    reach saturation), the start's with 1/inputs. Weights: W1 (width, inputs), then W2 (1, width), at most 12 together.
    ``noise``: standard deviation of the labels' noise; without it the teacher is an ``optimum`` of loss 0, with it none
    is known. ``batch``: rows a step, drawn with replacement; None for full gradients. The diagonals of Hessian and
    Gauss-Newton matrix differ wherever the error does not vanish. Raises ValueError naming a bad argument.
    """
    return _small_net("tanh", seed, (inputs, width), samples, noise, batch)


def relu_net(
    seed: int, width: int = 2, inputs: int = 2, samples: int = 64, noise: float = 0.0, batch: int | None = None
) -> MLP:
    """:func:`tanh_net` with ReLU: teacher and start have variance 2/inputs (He's initialization).

    The output is affine in each single weight almost everywhere, so the diagonals of Hessian and Gauss-Newton matrix
    coincide there; as a function of a weight the loss has kinks where a unit changes sides on a sample.
    """
    return _small_net("relu", seed, (inputs, width), samples, noise, batch)


def _small_net(
    activation: str, seed: int, sizes: tuple[int, int], samples: int, noise: float, batch: int | None
) -> MLP:
    inputs, width, samples = whole("inputs", sizes[0]), whole("width", sizes[1]), whole("samples", samples)
    noise = non_negative("noise", noise)
    if width * (inputs + 1) > LARGEST:
        raise ValueError(
            f"width = {width} and inputs = {inputs} give {width * (inputs + 1)} weights; "
            f"valid: width * (inputs + 1) of at most {LARGEST}"
        )
    name, shape, gains = f"{activation}_net", (inputs, width, 1), GAINS[activation]
    parts = layers(shape)
    teacher = normal_matrices(parts, gains.teacher, Stream(seed, f"{name}/teacher"))
    x = Stream(seed, f"{name}/inputs").numpy_generator().standard_normal((samples, inputs))
    errors = Stream(seed, f"{name}/noise").numpy_generator().standard_normal((samples, 1))
    options = {"samples": (samples, 64), "noise": (noise, 0.0), "batch": (batch, None)}
    changed = "".join(f" {key}={value}" for key, (value, usual) in options.items() if value != usual)
    return MLP(
        name=f"{name} {'-'.join(map(str, shape))}{changed} seed={seed}",
        provenance=f"synthetic: {samples} normal inputs, labels of a {activation} net of the same form, seed {seed}",
        inputs=x,
        targets=forward(teacher, x, activation)[-1] + noise * errors,
        sizes=shape,
        activation=activation,
        loss="squared",
        start=join(normal_matrices(parts, gains.start, Stream(seed, f"{name}/start"))),
        batches=Stream(seed, f"{name}/batch"),
        batch=batch,
        optimum=None if noise else join(teacher),
        floor=None if noise else 0.0,
    )


PROBLEMS = (Descriptor("relu_net", make=relu_net), Descriptor("tanh_net", make=tanh_net))
