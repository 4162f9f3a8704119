"""What the compiled loops hand to each other: records of arrays and numbers, which numba takes apart at no cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

TOP_CODES = {"absmax": 0, "rms": 1, "learned": 2, "absmean": 3}
"""What sets the highest level of a block, as the loops ask for it."""


class Lattice(NamedTuple):
    """What the loops know of a codebook: see :class:`lotion_theory.formats.compiled.Plan`."""

    high: float
    step_high: float
    step_low: float
    lowest: float
    highest: float
    units: np.ndarray
    even: np.ndarray


class Numbers(NamedTuple):
    """Scalars of a run: those of the optimizer, of a scale that is not absmax (``rms``, ``span``), of the Fisher."""

    beta1: float
    beta2: float
    epsilon: float
    rms: float
    span: float
    fisher: float
    scale: float
    top_decay: float


class Setup(NamedTuple):
    """What stays over a run: ``starts`` (blocks + 1,), where the blocks start in the flat weights."""

    starts: np.ndarray
    grid: Lattice
    n: Numbers


class Arrays(NamedTuple):
    """What a run changes: see :class:`.state.State`; ``d``, ``off``, ``through`` (P,) are scratch: the direction, what
    is taken off beside the optimizer, and the derivatives in the highest level."""

    w: np.ndarray
    m: np.ndarray
    v: np.ndarray
    h: np.ndarray
    d: np.ndarray
    off: np.ndarray
    through: np.ndarray
    top: np.ndarray
    top_m: np.ndarray
    top_v: np.ndarray
    top_factor: np.ndarray
    powers: np.ndarray


class Steps(NamedTuple):
    """Parameters, uniforms and learning rates: rows of them, or one."""

    a: np.ndarray
    u: np.ndarray
    rate: Any


class Loss(NamedTuple):
    """``½ Σ hessian (w - center)²``, of all weights or of a block."""

    hessian: np.ndarray
    center: np.ndarray


class Point(NamedTuple):
    """Where the loss gradient is taken, and the variance of randomized rounding there, (P,)."""

    x: np.ndarray
    variance: np.ndarray


class Out(NamedTuple):
    """A block's direction, what is taken off beside the optimizer, and the derivatives in its highest level."""

    d: np.ndarray
    off: np.ndarray
    through: np.ndarray


class Site(NamedTuple):
    """A block: its number, its first weight and the first behind it, its highest level, and which of its weights sets
    that. Numbers only: a record of arrays made per block would be paid for by counting references."""

    number: int
    first: int
    last: int
    peak: float
    leader: int


class Pace(NamedTuple):
    """The learning rate of a step and Adam's two bias corrections."""

    rate: float
    first: float
    second: float


class Form(NamedTuple):
    """What loops are compiled for: the functions of a rule, and ``top``, its highest level (:data:`TOP_CODES`)."""

    point: Callable
    direction: Callable
    anchor: Callable | None
    decay: Callable | None
    reset: Callable | None
    top: int
    noise: int
    fisher: bool
    adam: bool
