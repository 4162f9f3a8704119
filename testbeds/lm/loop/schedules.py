"""The learning rate as a function of the step alone."""

from __future__ import annotations

import math

from .config import OptimizerConfig


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of ``step`` (0 ... steps - 1): linear warm-up, then what ``config.schedule`` says.

    Cosine: from lr right after the warm-up to ``final * lr`` at the last step. WSD (warm-up, stable, decay;
    arXiv 2404.06395): lr until the last ``decay * steps`` steps, then linearly to ``final * lr`` at the last one.
    A warm-up longer than the run is cut to it.
    """
    warmup = min(config.warmup, steps)
    if step < warmup:
        return config.lr * (step + 1) / warmup
    if config.schedule == "constant":
        return config.lr
    start = warmup if config.schedule == "cosine" else max(warmup, steps - round(config.decay * steps))
    # Part of the way down, 1 at the last step; a fall of a single step is that step.
    progress = min(1.0, max(0.0, (step - start + 1) / max(1, steps - start)))
    part = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.lr * (config.final + (1 - config.final) * part)
