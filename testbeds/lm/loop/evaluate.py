"""Loss on held-out text with float, nearest-cast (RTN) and randomly rounded (RR) weights, with standard errors.

Sequences and rounding noise come from streams of the evaluation's own seed: evaluating changes nothing in training, and
all runs on the same data are measured on the same text with the same uniforms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import stdtrit
from torch import nn

from ..model.casts import Casting
from ..text.sequences import fixed_batch, fixed_sequences
from ..text.tokens import Tokens
from .config import EvaluationConfig
from .distributed import World

LEVEL = 0.95


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
    casting: Casting | None = None,
    batch: int = 32,
    world: World | None = None,
    autocast: Callable[[], AbstractContextManager] | None = None,
) -> dict[str, Estimate]:
    """Cross-entropy in nats per token: ``float``, and with a ``casting`` ``rtn``, ``rr``, ``gap`` and ``rr_gap``.

    The gaps, to the float loss, are paired by sequence. Everything but ``float`` is left out where that is not finite.
    The model's weights and mode are afterwards what they were, bit for bit.
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
        if casting is None or not math.isfinite(out["float"].mean):
            return out
        with casting.cast(model, casting.nearest):
            nearest = losses()
        rows = []
        for sample in range(config.samples):
            with casting.cast(model, casting.rounding(config.seed, sample)):
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


def metrics(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Estimates as a flat row: losses, standard errors, and perplexities with the ends of their intervals."""
    out: dict[str, float] = {}
    for name, value in estimates.items():
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
