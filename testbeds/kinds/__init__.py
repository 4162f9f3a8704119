"""Kinds of experiments: one file each, with what a run computes and its descriptor ``KIND``."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from ..problems.descriptor import Config
from .base import Kind

# A kind is known by its name here; its file has the same name.
NAMES = ("train", "timing", "round", "oracle", "estimator", "minima", "quantize")


def names(having: Callable[[Kind], Any] | None = None) -> tuple[str, ...]:
    """All kinds, or those whose descriptor has something."""
    return tuple(name for name in NAMES if having is None or having(kind(name)))


def kind(name: str, having: Callable[[Kind], Any] | None = None) -> Kind:
    """The kind called ``name``.

    Raises ValueError, listing those whose descriptor has what is wanted, for an unknown one or one that has not.
    """
    if name in NAMES:
        found = import_module(f".{name}", __name__).KIND
        if having is None or having(found):
            return found
    raise ValueError(f"unknown kind {name!r}; valid: {', '.join(names(having))}")


def run(name: str, config: Config, seed: int) -> dict[str, Any]:
    """The metrics of one run: what the workers of a sweep call.

    Raises :class:`~testbeds.problems.Diverged` for a method that left the finite range, ValueError for a configuration
    that cannot be run.
    """
    return kind(name).run(config, seed)


__all__ = ["Kind", "kind", "names", "run"]
