"""What tells one training method from another: a few functions of one weight, written with operators only.

The same functions run on numpy arrays in :mod:`.plain` and on scalars inside numba in :mod:`.compiled`; neither file
knows a method. A function takes a :class:`Place`, the step's parameters ``a`` (indexable), and returns a number of the
weight's kind. It may use operators, ``_kernels`` and ``np.sqrt``/``np.exp``/``np.tanh``, and no branches: use
``_kernels.select``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lotion_theory.grids import Codebook

Array = Any


class Place(NamedTuple):
    """Where a weight lies on its lattice.

    ``w``: the weight. ``lo``, ``hi``: the levels around it, equal on a level and beyond the ends. ``near``: the nearer
    one. ``unit_*``: the same levels on the lattice whose highest level is 1. ``top``: the highest level of the block.
    ``u``: the step's uniform.
    """

    w: Array
    lo: Array
    hi: Array
    near: Array
    unit_lo: Array
    unit_hi: Array
    unit_near: Array
    top: Array
    u: Array


def at_weight(p: Place, a: Array) -> Array:
    """Evaluate the loss at the weight itself."""
    return p.w


def at_nearest(p: Place, a: Array) -> Array:
    """Evaluate the loss at the nearest level."""
    return p.near


def straight_through(p: Place, g: Array, h: Array, a: Array) -> Array:
    """The loss gradient unchanged."""
    return g


@dataclass(frozen=True)
class LearnedTop:
    """The highest level of a block as a parameter of its own, trained by the same optimizer.

    ``start(w, book)``: initial value for a block of weights. ``span(book)``: the parameter is ``top / span`` (its step
    for LSQ, the clip for PACT). ``factor(n, book)``: multiplies the parameter's gradient for a block of ``n``.
    ``decay``: coefficient of an L2 penalty on the parameter.
    """

    start: Callable[[np.ndarray, Codebook], float]
    span: Callable[[Codebook], float]
    factor: Callable[[int, Codebook], float]
    decay: float = 0.0


def _no_parameters(progress: np.ndarray) -> np.ndarray:
    return np.zeros((len(progress), 1))


@dataclass(frozen=True)
class Rule:
    """One method with its settings fixed.

    ``point(p, a)``: where the loss gradient ``g`` is taken. ``direction(p, g, h, a)``: what the optimizer gets for the
    weight, ``h`` being the curvature. ``anchor(p, g, h, a)``: derivative in the block's ``top``; the sum over the block
    goes to the weight that sets it (absmax) or to the learned top, and is dropped if None. ``decay(p, h, a)``: taken
    off the weight beside the optimizer, times the learning rate. ``parameters(progress)``: rows of ``a`` for progress
    (steps,) in [0, 1).

    ``top``: "absmax" (follows the weights), "rms" (``rms`` times the block's root mean square) or "learned".
    ``noise``: 0 without uniforms, else how many consecutive weights share one. ``curvature``: "none", "gauss_newton"
    (``h`` from the problem, refreshed every ``refresh`` steps, 0 for never), "exact" (``g``, ``h`` from the problem's
    exact expected loss) or "fisher" (moving average of ``scale`` times the squared loss gradient, rate ``fisher``).
    ``book``: replaces the format's codebook. ``with_book(codebook)``: fields of the rule that depend on the codebook,
    to replace those given here; raises ValueError for a codebook the method cannot serve.

    What depends on settings is a ``functools.partial`` of a module's function, not a closure: rules can be pickled.
    """

    point: Callable = at_weight
    direction: Callable = straight_through
    anchor: Callable | None = None
    decay: Callable | None = None
    parameters: Callable[[np.ndarray], np.ndarray] = _no_parameters
    top: str = "absmax"
    rms: float = 0.0
    learned: LearnedTop | None = None
    noise: int = 0
    curvature: str = "none"
    refresh: int = 10
    fisher: float = 0.99
    book: Callable[[Codebook], Codebook] | None = None
    with_book: Callable[[Codebook], Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Trainer:
    """A training method: ``rule(settings)`` fixes it.

    ``information``: what it uses beyond gradients. ``grid``: "absmax", "rms" or "learned". ``source``: paper and
    equation. ``settings``: defaults; ``tuning``: values tried per setting beside the learning rate.
    """

    name: str
    rule: Callable[[Mapping[str, Any]], Rule]
    information: str
    grid: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def __call__(self, **settings: Any) -> Rule:
        """The rule with ``settings`` over the defaults; ValueError for a setting it does not have."""
        for key in settings:
            if key not in self.settings:
                raise ValueError(f"{self.name} has no setting {key!r}; valid: {', '.join(self.settings) or 'none'}")
        return self.rule({**self.settings, **settings})


def constant(*values: float) -> Callable[[np.ndarray], np.ndarray]:
    """Parameters that do not change over training."""
    return partial(_repeated, np.array(values or (0.0,), dtype=np.float64))


def _repeated(row: np.ndarray, progress: np.ndarray) -> np.ndarray:
    return np.repeat(row[None], len(progress), axis=0)


def ramped(weight: float, start: float, end: float) -> Callable[[np.ndarray], np.ndarray]:
    """A weight that is 0 up to progress ``start``, grows linearly, and is ``weight`` from ``end`` on; end <= start
    means the weight throughout."""
    if not 0 <= start <= 1 or not 0 <= end <= 1:
        raise ValueError(f"ramp from {start} to {end}: both must lie in [0, 1]")
    return partial(_ramp, weight, start, end)


def _ramp(weight: float, start: float, end: float, progress: np.ndarray) -> np.ndarray:
    if end <= start:
        share = np.ones(len(progress))
    else:
        share = np.clip((progress - start) / (end - start), 0, 1)
    return weight * share[:, None]
