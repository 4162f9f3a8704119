"""Loss on held-out text with float, nearest-cast (RTN) and randomly rounded (RR) weights, with standard errors.

Sequences and rounding noise come from streams of the evaluation's own seed: evaluating changes nothing in training, and
all runs on the same data are measured on the same text with the same uniforms.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from lotion_theory import Quantizer, Stream

from .config import EvaluationConfig
from .data import fixed_batch, fixed_sequences
from .distributed import World, assign, whole
from .tokens import Tokens

LEVEL = 0.95
Grid = Callable[[str, Tensor], Quantizer | None]


class Estimate(NamedTuple):
    """A mean over ``size`` sequences and its standard error; intervals are Student's, of level 0.95."""

    mean: float
    standard_error: float
    size: int

    @property
    def interval(self) -> tuple[float, float]:
        """Where the mean over all such text lies."""
        half = float(stdtrit(self.size - 1, (1 + LEVEL) / 2)) * self.standard_error
        return self.mean - half, self.mean + half


def estimate(values: np.ndarray) -> Estimate:
    """Mean and standard error of independent ``values`` (n,), n >= 2."""
    return Estimate(float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)), len(values))


def estimate_crossed(values: np.ndarray) -> Estimate:
    """Mean of ``values`` (roundings, sequences), each rounding being measured on every sequence.

    Squared standard errors of the means over roundings and over sequences add up. With effects of rounding, sequence
    and both together that exceeds the variance of the mean by the joint effect's, over the number of values.
    """
    rounding, text = estimate(values.mean(1)), estimate(values.mean(0))
    return Estimate(text.mean, math.hypot(rounding.standard_error, text.standard_error), text.size)


def evaluate(
    model: nn.Module,
    tokens: Tokens,
    config: EvaluationConfig,
    context: int,
    quantizer: Quantizer | None = None,
    names: Sequence[str] = (),
    batch: int = 32,
    world: World | None = None,
    autocast: Callable[[], AbstractContextManager] | None = None,
    grid: Grid | None = None,
) -> dict[str, Estimate]:
    """Cross-entropy in nats per token: ``float``, and with a quantizer ``rtn``, ``rr``, ``gap`` and ``rr_gap``.

    The gaps, to the float loss, are paired by sequence. Only the parameters ``names`` are cast. Everything but
    ``float`` is left out where that is not finite. The model's weights and mode are afterwards what they were, bit for
    bit.

    ``grid(name, w)``: the quantizer of a weight that has one of its own, else None. Such a grid may clip: weights
    beyond its range go to its end in ``rtn`` and ``rr``, so that randomized rounding is biased there.
    """
    world = world or World(next(model.parameters()).device)
    numbers = fixed_sequences(tokens, context, config.windows, config.seed)

    def losses() -> np.ndarray:
        return sequence_losses(model, tokens, numbers, context, config.batch or batch, world, autocast)

    training = model.training
    model.eval()
    try:
        plain = losses()
        out = {"float": estimate(plain)}
        if quantizer is None or not math.isfinite(out["float"].mean):
            return out
        weights = dict(model.named_parameters())
        chosen = {name: weights[name] for name in names}
        with replaced(chosen, lambda name, w: _of(name, w, quantizer, grid).cast(w)):
            nearest = losses()
        rows = []
        for sample in range(config.samples):
            noise = Noise(quantizer, config.seed, sample, grid)
            with replaced(chosen, noise):
                rows.append(losses())
        rounded = np.stack(rows)
    finally:
        model.train(training)
    return out | {
        "rtn": estimate(nearest),
        "rr": estimate_crossed(rounded),
        "gap": estimate(nearest - plain),
        "rr_gap": estimate_crossed(rounded - plain),
    }


def metrics(found: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates as a flat row: losses, standard errors, and perplexities with the ends of their intervals."""
    out: dict[str, float] = {}
    for name, value in found.items():
        if name.endswith("gap"):
            out |= {name: value.mean, f"{name}_standard_error": value.standard_error}
            continue
        out |= {f"{name}_loss": value.mean, f"{name}_standard_error": value.standard_error}
        for label, loss in zip(("", "_low", "_high"), (value.mean, *value.interval), strict=True):
            out[f"{name}_perplexity{label}"] = math.exp(loss) if loss < 700 else math.inf
    return out


@torch.no_grad()
def sequence_losses(
    model: nn.Module,
    tokens: Tokens,
    numbers: np.ndarray,
    context: int,
    batch: int,
    world: World,
    autocast: Callable[[], AbstractContextManager] | None = None,
) -> np.ndarray:
    """Mean cross-entropy of each of the sequences ``numbers``, float64, in their order; ranks share the work."""
    # Equally many batches in every rank, as forward passes of a sharded model need all of them: the last sequence
    # fills up.
    per_rank = -(-len(numbers) // (world.size * batch)) * batch
    padded = np.concatenate((numbers, np.repeat(numbers[-1:], per_rank * world.size - len(numbers))))
    mine = padded[world.rank * per_rank : (world.rank + 1) * per_rank]
    out = []
    for start in range(0, per_rank, batch):
        x, y = (torch.from_numpy(a).to(world.device) for a in fixed_batch(tokens, context, mine[start : start + batch]))
        with autocast() if autocast is not None else nullcontext():
            out.append(model(x, y, "none").double().mean(1))
    return world.gathered(torch.cat(out)).numpy()[: len(numbers)]


def _of(name: str, w: Tensor, quantizer: Quantizer, grid: Grid | None) -> Quantizer:
    own = None if grid is None else grid(name, w)
    return quantizer if own is None else own


class Noise:
    """Randomized rounding number ``sample`` of every weight, by name."""

    def __init__(self, quantizer: Quantizer, seed: int, sample: int, grid: Grid | None = None) -> None:
        self.quantizer, self.grid = quantizer, grid
        self.stream = Stream(seed, "lm/evaluation/rounding")
        self.sample = sample

    def __call__(self, name: str, w: Tensor) -> Tensor:
        stream = self.stream.spawn(name)
        quantizer, scale = _of(name, w, self.quantizer, self.grid), None
        if quantizer.scale.is_drawn:
            blocks = quantizer.partition.to_blocks(w).shape[0]
            scale = stream.spawn("scale").uniforms(blocks, self.sample, like=w)
        return quantizer.round(w, stream.uniforms(tuple(w.shape), self.sample, like=w), scale)


@contextmanager
def replaced(weights: Mapping[str, Tensor], change: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
    """Within the block each of ``weights`` holds ``change(name, weight)``; after it, its own bits again."""
    kept: dict[str, Tensor] = {}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                value = change(name, whole(weight))
                kept[name] = weight.detach().clone()
                assign(weight, value)
        yield
    finally:
        with torch.no_grad():
            for name, value in kept.items():
                weights[name].detach().copy_(value)


def quantized_names(model: nn.Module, include: Sequence[str], exclude: Sequence[str] = ()) -> list[str]:
    """Names of the matrices (2-D parameters) that match a pattern of ``include`` and none of ``exclude``.

    Patterns are those of a shell: ``*``, ``?``, ``[ab]``. Raises ValueError naming a pattern that matches no matrix,
    and if nothing is left.
    """
    matrices = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
    for label, patterns in (("include", include), ("exclude", exclude)):
        for pattern in patterns:
            if not fnmatch.filter(matrices, pattern):
                shown = ", ".join(dict.fromkeys(_general(name) for name in matrices))
                raise ValueError(f"method.{label}: pattern {pattern!r} matches no matrix; valid: {shown}")

    def among(name: str, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    names = [name for name in matrices if among(name, include) and not among(name, exclude)]
    if not names:
        raise ValueError(f"method.exclude = {list(exclude)} leaves nothing of method.include = {list(include)}")
    return names


def _general(name: str) -> str:
    """``blocks.3.feed.up.weight`` as ``blocks.*.feed.up.weight``."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def check_blocks(quantizer: Quantizer, weights: Mapping[str, Tensor]) -> None:
    """ValueError naming the first weight that the quantizer's blocks do not divide."""
    for name, weight in weights.items():
        try:
            quantizer.partition.length(tuple(weight.shape))
        except ValueError as error:
            raise ValueError(f"method.format = {str(quantizer)!r}: {name}: {error}") from None
