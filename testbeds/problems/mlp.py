"""Fully connected nets without biases on a fixed sample, and the classifier of handwritten digits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from lotion_theory import Stream

from ..data import load_digits
from .base import Part
from .descriptor import Descriptor
from .tensors import FlatWeights, in_chunks, join, join_batch, whole

Sample = tuple[np.ndarray, np.ndarray]


class _Activation(NamedTuple):
    value: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    """Derivative as a function of the value."""


class _Loss(NamedTuple):
    """Per-sample loss on outputs (..., N, C): ``value`` (..., N) and ``slope``, its gradient (..., N, C).

    ``factors`` (N, columns, C) of outputs (N, C): the loss' Hessian in the outputs is ``Σ_c factors_c factors_cᵀ``.
    """

    value: Callable[[np.ndarray, np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray]
    factors: Callable[[np.ndarray], np.ndarray]


def _softmax(outputs: np.ndarray) -> np.ndarray:
    exponentials = np.exp(outputs - outputs.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def _cross_entropy(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    shifted = outputs - outputs.max(axis=-1, keepdims=True)
    return np.log(np.exp(shifted).sum(axis=-1)) - shifted[..., np.arange(len(labels)), labels]


def _cross_entropy_slope(outputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    slope = _softmax(outputs)
    slope[..., np.arange(len(labels)), labels] -= 1
    return slope


def _cross_entropy_factors(outputs: np.ndarray) -> np.ndarray:
    """Columns ``√p_c (e_c - p)``: ``Σ_c p_c (e_c - p)(e_c - p)ᵀ = diag(p) - p pᵀ``."""
    p = _softmax(outputs)
    return np.sqrt(p)[:, :, None] * (np.eye(p.shape[1]) - p[:, None, :])


def _squared(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return ((outputs - targets) ** 2).mean(axis=-1)


def _squared_slope(outputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return 2 / outputs.shape[-1] * (outputs - targets)


def _squared_factors(outputs: np.ndarray) -> np.ndarray:
    n, c = outputs.shape
    return np.broadcast_to(math.sqrt(2 / c) * np.eye(c), (n, c, c))


# The slope of ReLU at 0 is taken to be 0, as everywhere in practice.
_ACTIVATIONS = {
    "relu": _Activation(lambda z: np.maximum(z, 0.0), lambda a: (a > 0).astype(np.float64)),
    "tanh": _Activation(np.tanh, lambda a: 1 - a**2),
}
_LOSSES = {
    "squared": _Loss(_squared, _squared_slope, _squared_factors),
    "cross_entropy": _Loss(_cross_entropy, _cross_entropy_slope, _cross_entropy_factors),
}


class MLP(FlatWeights):
    """Mean loss over a fixed sample of a fully connected net without biases, a :class:`TrainingProblem`.

    ``inputs`` (N, features). ``targets``: labels (N,) for ``cross_entropy``, outputs (N, C) for ``squared``, the error
    averaged over outputs. ``activation``: ``relu`` or ``tanh``. ``sizes``: features, hidden widths, C; weights are
    the matrices ``W1`` (width, features), ``W2``, ... one after another. There are no biases: nothing is trained that
    is not quantized. ``optimum`` and ``floor``, the smallest loss of unquantized weights: None where not known.
    ``batch``: rows a step, drawn with replacement by ``batches``; None for full gradients.
    """

    def __init__(
        self,
        *,
        name: str,
        provenance: str,
        inputs: np.ndarray,
        targets: np.ndarray,
        sizes: Sequence[int],
        activation: str,
        loss: str,
        start: np.ndarray,
        batches: Stream,
        batch: int | None = None,
        optimum: np.ndarray | None = None,
        floor: float | None = None,
    ) -> None:
        for argument, value, table in (("activation", activation, _ACTIVATIONS), ("loss", loss, _LOSSES)):
            if value not in table:
                raise ValueError(f"{argument} = {value!r}; valid: {', '.join(table)}")
        self.name, self.provenance = name, provenance
        self.inputs, self.targets = np.asarray(inputs, dtype=np.float64), np.asarray(targets)
        self.sizes = tuple(whole(f"sizes[{i}]", size) for i, size in enumerate(sizes))
        self.parts = layers(self.sizes)
        _check_sample(self.inputs, self.targets, self.sizes, loss)
        self.batch = None if batch is None else whole("batch", batch)
        self.start = join(self.single("start", start))
        self.optimum = None if optimum is None else join(self.single("optimum", optimum))
        self.floor = floor
        self.activation, self._loss, self.batches = activation, _LOSSES[loss], batches

    @property
    def curvature(self) -> np.ndarray:
        """:meth:`curvature_at` the optimum, or where none is known at the start."""
        return self.curvature_at(self.start if self.optimum is None else self.optimum)

    def outputs(self, points: Any, inputs: np.ndarray | None = None) -> np.ndarray:
        """Outputs (n, N, C) of the nets ``points`` (n, P) on ``inputs`` (N, features), by default the sample's."""
        return forward(self.tensors(points), self.inputs if inputs is None else inputs, self.activation)[-1]

    def _mean_loss(self, points: Any, inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        def values(some: np.ndarray) -> np.ndarray:
            return self._loss.value(self.outputs(some, inputs), targets).mean(axis=1)

        return in_chunks(values, points, self._numbers(inputs))

    def _numbers(self, inputs: np.ndarray) -> int:
        return len(inputs) * sum(self.sizes)

    def __call__(self, points: Any) -> np.ndarray:
        return self._mean_loss(points, self.inputs, self.targets)

    def gradient(self, points: Any) -> np.ndarray:
        def slopes(some: np.ndarray) -> np.ndarray:
            return self._slopes(self.tensors(some), self.inputs, self.targets)

        return in_chunks(slopes, points, self._numbers(self.inputs))

    def _slopes(self, matrices: list[np.ndarray], inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Gradients (n, P) of the mean loss over ``inputs`` for stacked matrices (n, ...)."""
        values = forward(matrices, inputs, self.activation)
        delta = self._loss.slope(values[-1], targets) / len(inputs)
        slopes = []
        for layer in range(len(matrices) - 1, -1, -1):
            slopes.append(delta.swapaxes(1, 2) @ values[layer])
            if layer:
                delta = (delta @ matrices[layer]) * _ACTIVATIONS[self.activation].slope(values[layer])
        return join_batch(slopes[::-1])

    def curvature_at(self, w: np.ndarray) -> np.ndarray:
        """Exact diagonal of the Gauss-Newton matrix at ``w`` (P,).

        The factors of each sample's output Hessian go backwards through the net; what arrives at a layer as δ, with a
        the layer's input, is the column ``δ aᵀ`` of that layer's part of ``Jᵀ factors``. Its squares, summed over
        columns and averaged over samples, are products of ``Σ_c δ²`` and ``a²``. For ReLU (outputs affine in each
        single weight almost everywhere) this is the diagonal of the Hessian too; for tanh it is not.
        """
        matrices = self.single("w", w)
        values = forward(matrices, self.inputs, self.activation)
        delta = self._loss.factors(values[-1])  # (N, columns, width of the layer)
        diagonal = []
        for layer in range(len(matrices) - 1, -1, -1):
            diagonal.append((delta**2).sum(axis=1).T @ values[layer] ** 2 / len(self.inputs))
            if layer:
                delta = (delta @ matrices[layer]) * _ACTIVATIONS[self.activation].slope(values[layer])[:, None, :]
        return join(diagonal[::-1])

    def expected_loss(self, w: np.ndarray, variance: np.ndarray) -> float | None:
        return None

    def expected_parts(self, w: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        return None

    def batch_gradient(self, x: np.ndarray, step: int) -> np.ndarray:
        """Gradient (P,) of the mean over ``batch`` rows drawn with replacement at ``step``; of all where it is None."""
        matrices = [matrix[None] for matrix in self.single("x", x)]
        inputs, targets = self.inputs, self.targets
        if self.batch is not None:
            rows = self.batches.numpy_generator(step).integers(len(inputs), size=self.batch)
            inputs, targets = inputs[rows], targets[rows]
        return self._slopes(matrices, inputs, targets)[0]


class Classifier(MLP):
    """An :class:`MLP` with cross-entropy loss and a test set.

    ``sample`` and ``test``: inputs (N, features) and labels (N,) of each; ``options`` are those of :class:`MLP`.
    """

    def __init__(self, name: str, provenance: str, sample: Sample, test: Sample, **options: Any) -> None:
        inputs, targets = sample
        super().__init__(
            name=name, provenance=provenance, inputs=inputs, targets=targets, loss="cross_entropy", **options
        )
        self.test_inputs, self.test_targets = np.asarray(test[0], dtype=np.float64), np.asarray(test[1])
        _check_sample(self.test_inputs, self.test_targets, self.sizes, "cross_entropy")

    def test_loss(self, points: Any) -> np.ndarray:
        """Mean cross-entropy (n,) on the test set of ``points`` (n, P)."""
        return self._mean_loss(points, self.test_inputs, self.test_targets)

    def test_accuracy(self, points: Any) -> np.ndarray:
        """Share (n,) of the test set whose largest output is the right one; of equal outputs the first counts."""

        def shares(some: np.ndarray) -> np.ndarray:
            return (self.outputs(some, self.test_inputs).argmax(axis=-1) == self.test_targets).mean(axis=1)

        return in_chunks(shares, points, self._numbers(self.test_inputs))


def forward(matrices: Sequence[np.ndarray], inputs: np.ndarray, activation: str) -> list[np.ndarray]:
    """Inputs (N, features), activations of every hidden layer, and outputs, for single or stacked (n, ...) matrices."""
    values = [inputs]
    for matrix in matrices[:-1]:
        values.append(_ACTIVATIONS[activation].value(values[-1] @ matrix.swapaxes(-1, -2)))
    values.append(values[-1] @ matrices[-1].swapaxes(-1, -2))
    return values


def layers(sizes: Sequence[int]) -> tuple[Part, ...]:
    """The matrices ``W1`` (sizes[1], sizes[0]), ``W2``, ... of a fully connected net."""
    return tuple(Part(f"W{i + 1}", (sizes[i + 1], sizes[i])) for i in range(len(sizes) - 1))


def normal_matrices(parts: Sequence[Part], gain: float, stream: Stream) -> list[np.ndarray]:
    """Normal weights of variance ``gain / inputs`` in each matrix; gain 2 is He's initialization."""
    rng = stream.numpy_generator()
    return [math.sqrt(gain / part.shape[1]) * rng.standard_normal(part.shape) for part in parts]


def _check_sample(inputs: np.ndarray, targets: np.ndarray, sizes: tuple[int, ...], loss: str) -> None:
    """Raise ValueError where a sample does not fit the net."""
    if len(sizes) < 2 or inputs.ndim != 2 or not len(inputs) or inputs.shape[1] != sizes[0]:
        raise ValueError(f"inputs have shape {inputs.shape} for sizes {sizes}; expected (N, sizes[0]), N at least 1")
    expected = (len(inputs),) if loss == "cross_entropy" else (len(inputs), sizes[-1])
    if targets.shape != expected:
        raise ValueError(f"targets have shape {targets.shape}, expected {expected}")
    if loss == "cross_entropy" and not (targets.dtype.kind in "iu" and 0 <= targets.min() <= targets.max() < sizes[-1]):
        raise ValueError(f"targets must be integers from 0 to {sizes[-1] - 1}")


def digits_mlp(
    hidden: Sequence[int] = (32,), *, seed: int, batch: int | None = None, test: float = 0.25, trained: int = 0
) -> Classifier:
    """ReLU classifier of 8 x 8 handwritten digits: cross-entropy, no biases, weights (hidden, 64), ..., (10, hidden).

    The share ``test`` of the 1797 images is kept for testing (449 by default). The split is the same for all seeds and
    the training sets of smaller shares contain those of larger ones. ``seed`` gives the start (He's initialization) and
    the batches of ``batch`` images, drawn with replacement; None for full gradients. ``hidden``: widths, ``()`` for
    softmax regression. ``trained``: start from a checkpoint instead, which :func:`fitted` trains for so many steps of
    64 images. Some pixels are empty in every image: their weights change nothing. Raises ValueError naming a bad
    argument.
    """
    images, labels = load_digits()
    count = round(test * len(images)) if 0 < test < 1 else 0
    if not 0 < count < len(images):
        raise ValueError(f"test = {test!r}; valid: a share between 0 and 1 that leaves images on both sides")
    widths = tuple(whole(f"hidden[{i}]", width) for i, width in enumerate(hidden))
    sizes = (images.shape[1], *widths, 10)
    order = np.argsort(Stream(0, "digits_mlp/split").uniforms(len(images), dtype="float64"), kind="stable")
    held, used = order[:count], order[count:]
    trained = whole("trained", trained, 0)
    options = {"batch": (batch, None), "test": (test, 0.25), "trained": (trained, 0)}
    changed = "".join(f" {key}={value}" for key, (value, usual) in options.items() if value != usual)
    made = Classifier(
        f"digits_mlp {'-'.join(map(str, sizes))}{changed} seed={seed}",
        f"UCI optical recognition of handwritten digits, {len(used)} images to train on and {count} to test",
        (images[used], labels[used]),
        (images[held], labels[held]),
        sizes=sizes,
        activation="relu",
        start=join(normal_matrices(layers(sizes), 2.0, Stream(seed, "digits_mlp/start"))),
        batches=Stream(seed, "digits_mlp/batch"),
        batch=batch,
    )
    if trained:
        made.start = _checkpoint(sizes, seed, test, trained)
    return made


@lru_cache(maxsize=64)
def _checkpoint(sizes: tuple[int, ...], seed: int, test: float, steps: int) -> np.ndarray:
    """The weights that :func:`digits_mlp` starts from when it was ``trained``; batches are others than in training."""
    problem = digits_mlp(sizes[1:-1], seed=seed, batch=64, test=test)
    problem.batches = Stream(seed, "digits_mlp/checkpoint")
    return fitted(problem, steps)


def fitted(problem: MLP, steps: int, lr: float = 1e-2) -> np.ndarray:
    """Weights (P,) after ``steps`` steps of Adam on the problem's batches, its learning rate falling along a cosine."""
    w = problem.start.copy()
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t in range(steps):
        g = problem.batch_gradient(w, t)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = lr * (1 + math.cos(math.pi * t / steps)) / 2
        w -= rate * (m / (1 - 0.9 ** (t + 1))) / (np.sqrt(v / (1 - 0.999 ** (t + 1))) + 1e-8)
    return w


PROBLEMS = (Descriptor("digits_mlp", make=digits_mlp),)
