"""What tells one training method from another: a few functions of one weight, written with operators only.

The same functions run on numpy arrays, on scalars inside numba loops and on torch tensors; none of those engines knows
a method. A function takes a :class:`Place` and the step's parameters ``a`` (indexable), and returns a number of the
weight's kind. It may use operators, ``kernels``, and ``exp``, ``tanh`` and ``cos`` of ``functions``, but no branches:
use ``kernels.select``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np

from .. import kernels
from ..arguments import is_integer, is_real, number
from ..formats.codebooks import Codebook

Array = Any

LEAST_LEFT = 1e-3
"""Share of a learned level's parameter that is left, at the least, by one update: it stays positive."""
OF_PROBLEMS = ("curvature", "refresh", "gradient_at")
"""Settings that say where a test problem's curvature and gradient come from; a torch loop brings its own."""
PLACES = ("weight", "rounded", "mixture")
"""Where a curvature is measured: at the weights ``w``, at a randomized rounding ``RR(w)``, or at a mixture that takes
each weight from ``RR(w)`` with probability ``t``, else from ``w``, ``t`` being uniform on [0, 1) (claim C21)."""


class Place(NamedTuple):
    """Where a weight lies on its lattice.

    ``w``: the weight. ``lo``, ``hi``: the levels around it, equal on a level and beyond the ends. ``near``: the nearer
    one. ``unit_*``: the same levels on the lattice whose highest level is 1. ``top``: the highest level of the block.
    ``u``: the step's uniform. ``n``: how many weights the block has.
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
    n: Array


# --- functions that many methods share -------------------------------------------------------------------------------


def at_weight(p: Place, a: Array) -> Array:
    """Evaluate the loss at the weight itself."""
    return p.w


def at_nearest(p: Place, a: Array) -> Array:
    """Evaluate the loss at the nearest level."""
    return p.near


def at_rounded(p: Place, a: Array) -> Array:
    """Evaluate the loss at one randomized rounding; weights beyond the range go to its end."""
    return kernels.pick(kernels.select(p.w, p.lo, p.w < p.lo), p.lo, p.hi, p.u)


def mixed(w: Array, rounded: Array, u: Array, t: Array) -> Array:
    """Each weight from ``rounded`` where its uniform ``u`` is below ``t``, else ``w``: exact, as it selects."""
    return kernels.select(w, rounded, u < t)


def straight_through(p: Place, g: Array, h: Array, a: Array) -> Array:
    """The loss gradient unchanged."""
    return g


def inside_range(p: Place, g: Array, h: Array, a: Array) -> Array:
    """``g`` for weights inside the range, 0 for clipped ones."""
    return g * (abs(p.w) < p.top)


def step_over_top(book: Codebook, method: str) -> float:
    """Step of a uniform codebook over its highest level, so that ``top`` times it is the step of a block's grid.

    Raises ValueError, naming the ``method``, for a codebook that is not uniform.
    """
    if book.step is None:
        raise ValueError(f"codebook {book.name}: {method} is for uniform levels, e.g. int2 ... int8, ternary, binary")
    return float(book.step / book.high)


# --- parameters over training ----------------------------------------------------------------------------------------


class Clock(Protocol):
    """Where training stands, for :class:`Parameters`. Moments are shares of training (float in [0, 1]); a clock that
    counts steps takes a step (int) as well. ``name``: of the setting that an error is to name."""

    def since(self, moment: float, name: str = "start") -> Array:
        """1 from ``moment`` on, 0 before."""
        ...

    def ramp(self, start: float, end: float, name: str = "start") -> Array:
        """0 up to ``start``, growing linearly, and 1 from ``end`` on; a step where both are equal."""
        ...

    def ends(self, parts: int) -> Array:
        """1 at the last step of each of so many equal parts of training, else 0."""
        ...


class Shares:
    """The clock of the descent engines: ``progress`` (steps,) in [0, 1). ValueError for a moment outside of [0, 1]."""

    def __init__(self, progress: np.ndarray) -> None:
        self.progress = progress

    def since(self, moment: float, name: str = "start") -> np.ndarray:
        return 1.0 * (self.progress >= _share(moment, name))

    def ramp(self, start: float, end: float, name: str = "start") -> np.ndarray:
        start, end = _share(start, name), _share(end, name)
        if end <= start:
            return self.since(start, name)
        return np.clip((self.progress - start) / (end - start), 0, 1)

    def ends(self, parts: int) -> np.ndarray:
        # Shares of equally many steps: a part ends with a step where the next one begins another part. A billionth
        # keeps shares that are a rounding below a whole number from counting as the part before.
        step = self.progress[1] - self.progress[0] if len(self.progress) > 1 else 0.0
        now, after = (np.floor((self.progress + done) * parts + 1e-9) for done in (0.0, step))
        return 1.0 * (after > now)


def _share(moment: float, name: str) -> float:
    if not 0 <= moment <= 1:
        raise ValueError(f"{name} = {moment!r}; a share of training lies in [0, 1]")
    return float(moment)


def check_moment(settings: Mapping[str, Any], name: str) -> None:
    """ValueError unless the setting ``name`` is a share of training (float in [0, 1]) or a step (int)."""
    moment = settings[name]
    step = type(moment) is int and moment >= 0
    if not step and not (isinstance(moment, float) and 0 <= moment <= 1):
        raise ValueError(f"{name} = {moment!r}; valid: a share of training (float in [0, 1]), or a step (int)")


@dataclass(frozen=True)
class Parameters:
    """The step's parameters ``a`` over training. ``columns(clock)``: its numbers, each constant or from the clock."""

    columns: Callable[[Any], tuple[Any, ...]]

    def __call__(self, progress: np.ndarray) -> np.ndarray:
        """Rows of ``a``, (steps, numbers), at progress (steps,) in [0, 1)."""
        zeros = np.zeros(len(progress))
        return np.column_stack([zeros + column for column in self.columns(Shares(progress))])


def constant(*values: float) -> Parameters:
    """Parameters that do not change over training; 0 for no values."""
    row = tuple(map(float, values)) or (0.0,)
    return Parameters(lambda clock: row)


def ramped(weight: float, start: float, end: float, name: str = "ramp") -> Parameters:
    """A ``weight`` that is 0 up to ``start``, grows linearly, and is whole from ``end`` on; a step where both are
    equal. ValueError for moments that are no steps and not in [0, 1]."""
    for moment in (start, end):
        check_moment({name: moment}, name)
    return Parameters(lambda clock: (weight * clock.ramp(start, end, name),))


def stepped(weight: float, start: float, name: str = "start") -> Parameters:
    """0 up to the moment ``start``, then ``weight``."""
    return Parameters(lambda clock: (weight * clock.since(start, name),))


_ZERO = constant()

# --- a method --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LearnedTop:
    """The highest level of a block as a parameter of its own, trained by the same optimizer.

    ``start(w, book)``: initial value of the level for a block of weights, the last axis of an array or tensor.
    ``span(book)``: the parameter is ``top / span``. It sets the pace: an optimizer whose steps do not depend on the
    size of gradients, as Adam's, moves the level by ``span`` times the learning rate a step. ``factor(n, book)``:
    multiplies the parameter's gradient for a block of ``n``; such an optimizer does not see it. ``decay``: coefficient
    of an L2 penalty on the parameter.
    """

    start: Callable[[Array, Codebook], Array]
    span: Callable[[Codebook], float]
    factor: Callable[[int, Codebook], float]
    decay: float = 0.0


@dataclass(frozen=True)
class Rule:
    """One method with its settings fixed.

    ``point(p, a)``: where the loss gradient ``g`` is taken. ``direction(p, g, h, a)``: what the optimizer gets for the
    weight, ``h`` being the curvature. ``anchor(p, g, h, a)``: derivative in the block's ``top``; the sum over the block
    goes to what sets it, by ``top``, and is dropped if None. ``decay(p, h, a)``: taken
    off the weight beside the optimizer, times the learning rate. ``reset(p, a)``: what a weight becomes after the
    optimizer's step, at its place then. ``parameters``: ``a`` over training.

    ``top``: "absmax" (follows the weights), "rms" (``rms`` times the block's root mean square; no derivative goes
    through it), "absmean" (``rms`` times the block's mean magnitude; the derivative goes to all its weights) or
    "learned".
    ``noise``: 0 without uniforms, else how many consecutive weights share one. ``curvature``: "none", "gauss_newton"
    (``h`` from the problem, refreshed every ``refresh`` steps, 0 for never), "exact" (``g``, ``h`` from the problem's
    exact expected loss) or "fisher" (moving average of ``scale`` times the squared loss gradient, rate ``fisher``).
    ``measured``: where it is, one of :data:`PLACES`; elsewhere than at the weight also "fisher" is refreshed every
    ``refresh`` steps, by a gradient of its own.
    ``book``: replaces the format's codebook. ``with_book(codebook)``: fields of the rule that depend on the codebook,
    to replace those given here; raises ValueError for a codebook the method cannot serve. ``linear``: whether
    ``direction`` and ``anchor`` are proportional to ``g``. ``made``: the method's name, its settings and the codebooks
    that the rule was put on, by which it is pickled and copied; None for a rule of one's own.
    """

    point: Callable = at_weight
    direction: Callable = straight_through
    anchor: Callable | None = None
    decay: Callable | None = None
    reset: Callable | None = None
    parameters: Parameters = _ZERO
    top: str = "absmax"
    rms: float = 0.0
    learned: LearnedTop | None = None
    noise: int = 0
    curvature: str = "none"
    measured: str = "weight"
    refresh: int = 10
    fisher: float = 0.99
    book: Callable[[Codebook], Codebook] | None = None
    with_book: Callable[[Codebook], Mapping[str, Any]] | None = None
    linear: bool = True
    made: tuple[str, Mapping[str, Any], tuple[Codebook, ...]] | None = field(default=None, compare=False)

    @property
    def averages_gradients(self) -> bool:
        """Whether the curvature is made of the very gradients that training follows."""
        return self.curvature == "fisher" and self.measured == "weight"

    def on(self, book: Codebook) -> tuple[Rule, Codebook]:
        """The rule with what depends on the codebook filled in, and the codebook that it trains on, for the ``book`` of
        a format. ValueError for a codebook the method cannot serve."""
        given = book
        if self.book is not None:
            book = self.book(book)
        rule = self if self.with_book is None else replace(self, **self.with_book(book))
        if self.made is not None:
            rule = replace(rule, made=(*self.made[:2], (*self.made[2], given)))
        return rule, book

    def __reduce__(self) -> tuple[Any, ...]:
        # Its functions may be closures, which cannot be pickled: what made them can.
        if self.made is not None:
            return _made, self.made
        return Rule, tuple(getattr(self, f.name) for f in fields(self))


def _made(name: str, settings: Mapping[str, Any], books: tuple[Codebook, ...]) -> Rule:
    """The rule of the method called ``name``, put on ``books``."""
    rule = method(name)(**settings)
    for book in books:
        rule, _ = rule.on(book)
    return rule


@dataclass(frozen=True)
class Method:
    """A training method: ``rule(settings)`` fixes it.

    ``information``: what it uses beyond gradients. ``grid``: "absmax", "rms", "absmean" or "learned". ``source``: paper
    and equation. ``settings``: defaults; ``tuning``: values tried per setting beside the learning rate. ``any_format``:
    whether its functions use no more of the lattice than ``w``, ``near`` and a randomized rounding, so that every
    format serves. ``instead``: what does the same in a torch loop, for methods that are no straight-through training.
    ``spelled``: other names of settings in a torch loop, whose own arguments have theirs.
    """

    name: str
    rule: Callable[[Mapping[str, Any]], Rule]
    information: str
    grid: str
    source: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuning: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    any_format: bool = False
    instead: str = ""
    spelled: Mapping[str, str] = field(default_factory=dict)

    def looped(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Settings, or values tried for them, as a torch loop has them: without :data:`OF_PROBLEMS`, and ``spelled`` as
        there."""
        return {self.spelled.get(key, key): value for key, value in values.items() if key not in OF_PROBLEMS}

    def __call__(self, **settings: Any) -> Rule:
        """The rule with ``settings`` over the defaults; ValueError for a setting it does not have."""
        for key, value in settings.items():
            if key not in self.settings:
                raise ValueError(f"{self.name} has no setting {key!r}; valid: {', '.join(self.settings) or 'none'}")
            if is_real(self.settings[key]):
                # A moment of training is told by its type: a step is an integer, a share is not.
                settings[key] = operator.index(value) if is_integer(value) else number(value, key)
        rule = self.rule({**self.settings, **settings})
        return replace(rule, made=(self.name, settings, ())) if self._registered() else rule

    def _registered(self) -> bool:
        return self.name in names() and method(self.name) is self

    def __reduce__(self) -> tuple[Any, ...]:
        if self._registered():
            return method, (self.name,)
        return Method, tuple(getattr(self, f.name) for f in fields(self))


# A method is known by its name here; its file has the same name.
NAMES = (
    "ptq", "qat", "rr_ste", "diffq", "quant_noise", "cage", "quest", "lsq", "pact", "stable_qat", "winq", "dsq", "dgm",
    "parq", "hestia", "crown_q", "lotion",
)  # fmt: skip


def names() -> tuple[str, ...]:
    """All training methods."""
    return NAMES


def method(name: str) -> Method:
    """The method called ``name``; ValueError, listing the names, for an unknown one."""
    if name not in NAMES:
        raise ValueError(f"unknown training method {name!r}; valid: {', '.join(NAMES)}")
    return import_module(f".{name}", __package__).METHOD


def choice(settings: Mapping[str, Any], name: str, valid: tuple[str, ...]) -> str:
    """The setting ``name``; ValueError, listing the ``valid`` values, for another one."""
    if settings[name] not in valid:
        raise ValueError(f"{name} = {settings[name]!r}; valid: {', '.join(valid)}")
    return settings[name]
