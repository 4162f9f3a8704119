"""Sources of a penalty's curvature by name."""

from __future__ import annotations

from ..arguments import integer
from .curvature import Average, Curvature, Estimates, Fisher, Given, Moments, Optimizers
from .kfac import Kfac
from .selection import Quantized

CURVATURES = ("fisher", "gnb", "hutchinson", "kfac", "adam", "given")

FEEDS = {
    "fisher": "call observe(batch_size) after the backward pass",
    "gnb": "call gnb_update(penalty, logits) first",
    "hutchinson": "call hutchinson_update(penalty, loss) first",
    "kfac": "call watch(model) once, and observe(batch_size) after the backward pass",
    "adam": "the optimizer has not stepped",
    "given": "call set_curvature_(values)",
}
"""What to do where there is no curvature yet."""


def source(
    kind: str,
    items: list[Quantized],
    decay: float,
    mean: str,
    optimizer: Optimizers | None,
    batch_size: int | None,
) -> Curvature:
    """The source called ``kind``; ValueError for another name, and for arguments that do not fit it."""
    if kind not in CURVATURES:
        raise ValueError(f"curvature = {kind!r}; valid: {', '.join(CURVATURES)}, or a mapping from names to tensors")
    if kind == "adam":
        if optimizer is None or batch_size is None:
            raise ValueError("curvature='adam' needs optimizer and batch_size, a positive integer")
        return Moments(items, optimizer, integer(batch_size, "batch_size"))
    if kind == "fisher":
        return Fisher(items, decay, mean)
    if kind == "gnb":
        return Average(items, decay)
    if kind == "hutchinson":
        return Estimates(items, decay)
    return Kfac(items, decay) if kind == "kfac" else Given(items)
