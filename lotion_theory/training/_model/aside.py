"""Gradients, buffers and random numbers as they were, after passes that are no part of training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def set_aside(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block each ``.grad`` is None to begin with; afterwards what it was."""
    kept = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        yield
    finally:
        for p, gradient in zip(parameters, kept, strict=True):
            p.grad = gradient


@contextmanager
def untouched(model: nn.Module | None, device: torch.device) -> Iterator[None]:
    """Afterwards the buffers of ``model`` (statistics of batches) and torch's random numbers are what they were."""
    buffers = [] if model is None else list(model.buffers())
    kept = [buffer.detach().clone() for buffer in buffers]
    cards = [device] if device.type != "cpu" else []
    try:
        with torch.random.fork_rng(cards, device_type=device.type if cards else "cuda"):
            yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)
