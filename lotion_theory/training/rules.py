"""What tells one straight-through method from another: a few functions of one weight, as tensors.

``point(p, a)``: where the loss is evaluated. ``direction(p, g, h, a)``: what the optimizer gets for the weight, ``g``
being the loss gradient at that point and ``h`` a curvature. ``anchor(p, g, h, a)``: the derivative in the block's
highest level, whose sum over the block goes to the largest weights (absmax) or to the learned level. ``pull(p, a)``:
taken off the weight beside the optimizer, times the learning rate. ``a``: the step's parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from .. import _kernels
from .._numbers import number
from ..grids import Codebook
from .fake import Levels, Sides, clipped, ordered
from .schedules import Ramp, as_step

Parameters = tuple[Tensor | float, ...]


class Place:
    """Where weights lie on their lattices. ``w`` (blocks, n), ``top`` (blocks, 1): the highest level, ``u``: uniforms
    of ``w``'s shape or None. What else a method asks for is worked out then: ``near``, ``lo`` and ``hi``."""

    def __init__(self, w: Tensor, top: Tensor, levels: Levels, u: Tensor | None = None) -> None:
        self.w, self.top, self.levels, self.u = w, top, levels, u
        self._sides: Sides | None = None
        self._near: Tensor | None = None

    @property
    def sides(self) -> Sides:
        if self._sides is None:
            self._sides = self.levels.sides(self.w, self.top)
        return self._sides

    @property
    def near(self) -> Tensor:
        """The nearest level."""
        if self._near is None:
            self._near = self.levels.nearest(self.w, self.top)
        return self._near

    @property
    def uniforms(self) -> Tensor:
        assert self.u is not None, "a rule with noise is given uniforms"
        return self.u

    @property
    def rounded(self) -> Tensor:
        """One randomized rounding from the uniforms; weights beyond the range go to its end."""
        lo, hi = ordered(self.sides)
        return torch.where(_kernels.goes_up(clipped(self.w, lo, hi), lo, hi, self.uniforms), hi, lo)

    def over_top(self, x: Tensor) -> Tensor:
        """``x / top``, 0 for blocks of zeros."""
        return x / (self.top + (self.top == 0))


@dataclass(frozen=True)
class LearnedTop:
    """The highest level of a block as a parameter: ``top = span · parameter``. ``start(x)`` (blocks, 1): its first
    value times span. ``factor(n)``: of the parameter's gradient in a block of ``n``."""

    span: float
    start: Callable[[Tensor], Tensor]
    factor: Callable[[int], float]


def _none(step: Tensor) -> Parameters:
    return ()


@dataclass(frozen=True)
class Rule:
    """One method with its settings fixed. ``top``: "absmax", "rms" (``rms`` times the block's root mean square) or
    "learned". ``noise``: whether it needs uniforms. ``book``: replaces the format's codebook. ``parameters(step)``:
    ``a`` at a step, a 0-dimensional tensor. ``curvature``: whether ``h`` is used. ``linear``: whether what it makes of
    gradients is proportional to them. ``made``: the arguments of :func:`rule_of` that made it, by which it is pickled
    and copied; None for others."""

    point: Callable[[Place, Parameters], Tensor]
    direction: Callable[[Place, Tensor, Any, Parameters], Tensor] | None = None
    anchor: Callable[[Place, Tensor, Any, Parameters], Tensor] | None = None
    pull: Callable[[Place, Parameters], Tensor] | None = None
    parameters: Callable[[Tensor], Parameters] = _none
    top: str = "absmax"
    rms: float = 0.0
    learned: LearnedTop | None = None
    noise: bool = False
    book: Codebook | None = None
    curvature: bool = False
    linear: bool = True
    made: tuple[str, dict[str, Any], Codebook, int | None] | None = field(default=None, compare=False)

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        if self.made is not None:
            return rule_of, self.made
        return Rule, tuple(getattr(self, f.name) for f in fields(self))

    @property
    def corrects(self) -> bool:
        """Whether anything is done to gradients or weights around the optimizer's step."""
        return self.direction is not None or self.anchor is not None or self.pull is not None

    @property
    def casts(self) -> bool:
        """Whether the loss is evaluated at the cast to the format itself."""
        return self.point is nearest and self.top == "absmax" and self.book is None


def nearest(p: Place, a: Parameters) -> Tensor:
    """The point of methods that round to nearest."""
    return p.near


def _choice(settings: Mapping[str, Any], name: str, valid: tuple[str, ...]) -> str:
    if settings[name] not in valid:
        raise ValueError(f"{name} = {settings[name]!r}; valid: {', '.join(valid)}")
    return settings[name]


def _step_of(book: Codebook, method: str) -> float:
    """Step of a uniform codebook over its highest level; ValueError for one that is not uniform."""
    if book.step is None:
        raise ValueError(f"codebook {book.name}: {method} is for uniform levels, e.g. int2 ... int8, ternary, binary")
    return float(book.step / book.high)


# --- the methods -----------------------------------------------------------------------------------------------------


def qat(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """STE (arXiv 1308.3432): the loss gradient at the nearest levels. ``scale``: "detached" (usual), or "attached",
    which passes ``g (near - w) / top``, the derivative of rounding under STE, on to the scale."""

    def through_scale(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        return g * p.over_top(p.near - p.w)

    attached = _choice(settings, "scale", ("detached", "attached")) == "attached"
    return Rule(nearest, anchor=through_scale if attached else None)


def rr_ste(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """RR-STE ("RAT"): the loss gradient at one randomized rounding, whose mean on quadratics is the plain gradient: no
    smoothing reaches the weights (claim C14)."""

    def at_rounded(p: Place, a: Parameters) -> Tensor:
        return p.rounded

    return Rule(at_rounded, noise=True)


def cage(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """CAGE (arXiv 2510.18784): a pull ``λ (w - RTN(w))`` toward the grid. ``weight``: λ. ``silent``: share of training
    without it, after which it grows linearly up to the end, or is constant (``ramp``). ``form``: "decoupled", beside
    the optimizer, or "coupled", through it. ``point``: loss gradients at the "nearest" levels (STE) or at the
    "weight"."""
    coupled = _choice(settings, "form", ("decoupled", "coupled")) == "coupled"
    linear = _choice(settings, "ramp", ("linear", "constant")) == "linear"
    near = _choice(settings, "point", ("nearest", "weight")) == "nearest"
    silent, weight = settings["silent"], number(settings["weight"], "weight", 0.0)
    if linear and total_steps is None:
        raise ValueError("cage's linear ramp ends with training: give total_steps, or ramp='constant'")
    as_step(silent, total_steps, "silent")
    if isinstance(silent, float) and silent == 1:
        raise ValueError(f"silent = {silent!r}; must lie in [0, 1)")
    ramp = Ramp(silent, 1.0 if linear else silent, total_steps)

    def with_pull(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        return g + a[0] * (p.w - p.near)

    def pull(p: Place, a: Parameters) -> Tensor:
        return a[0] * (p.w - p.near)

    def parameters(step: Tensor) -> Parameters:
        return (weight * ramp.at(step),)

    point = nearest if near else _weight
    if coupled:
        return Rule(point, with_pull, parameters=parameters, linear=False)
    return Rule(point, pull=pull, parameters=parameters)


def _weight(p: Place, a: Parameters) -> Tensor:
    return p.w


def diffq(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """DiffQ (arXiv 2104.09987) at a fixed bit width: additive noise ``s ξ`` of mean 0 in place of rounding.
    ``variance`` of ξ: 1/12 as for rounding errors, 1/4 as much as the released code's Gaussian. ``scale``: "attached"
    or "detached"."""
    width = math.sqrt(12 * number(settings["variance"], "variance", 0.0)) * _step_of(book, "diffq")

    def at_noisy(p: Place, a: Parameters) -> Tensor:
        return p.w + p.top * (width * (p.uniforms - 0.5))

    def through_step(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        return g * (width * (p.uniforms - 0.5))

    attached = _choice(settings, "scale", ("attached", "detached")) == "attached"
    return Rule(at_noisy, anchor=through_step if attached else None, noise=True)


# Clip over RMS of least squared error for a standard normal, by number of levels (the constants of QuEST's paper).
CLIPS = {
    2: 0.79788, 3: 1.22401, 4: 1.49353, 8: 2.05107, 16: 2.51393, 32: 2.91609, 64: 3.27660, 128: 3.60105, 256: 3.88494,
}  # fmt: skip


def midrise(book: Codebook) -> Codebook:
    """The grid of as many levels as ``book`` has bits: ±1, ±3, ..., ±(2^b - 1); -2, 0, 2 for ternary."""
    _step_of(book, "quest")
    count = round(2**book.bits)
    codes = tuple(Fraction(k) for k in range(1 - count, count, 2))
    even = tuple(i % 2 == 0 for i in range(count))
    return Codebook(f"midrise{count}", codes, even, book.bits, f"{count} levels around 0")


def quest(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """QuEST (arXiv 2502.05003) without its rotation: STE where the rounding error is at most half a step. ``grid``:
    "rms" with the Gaussian-optimal clip, or "absmax" with the format's own levels, where that is everywhere."""
    on_rms = _choice(settings, "grid", ("rms", "absmax")) == "rms"
    own = midrise(book) if on_rms else book
    half = _step_of(own, "quest") / 2

    def trusted(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        # Within the range the error is at most half a step; in this form a midpoint cannot fail by a rounding error.
        return g * (p.w.abs() <= p.top * (1 + half))

    if not on_rms:
        return Rule(nearest, trusted)
    return Rule(nearest, trusted, top="rms", rms=CLIPS[len(own.levels)], book=own)


def lsq(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """LSQ (arXiv 1902.08153, eqs. 1-3): STE with a learned step per block, on a symmetric range."""
    _step_of(book, "lsq")
    positive = sum(level > 0 for level in book.levels)

    def inside(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        return g * (p.w.abs() < p.top)

    def through_step(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        # Positive levels times this is eq. 3: round(v) - v inside the range, the end of the range beyond it.
        return g * p.over_top(p.near - (p.w.abs() < p.top) * p.w)

    def start(x: Tensor) -> Tensor:
        size = 2 * x.abs().mean(dim=1, keepdim=True) * math.sqrt(positive)
        # A block of zeros has no size of its own.
        return torch.where(size > 0, size, torch.ones_like(size))

    learned = LearnedTop(float(positive), start, lambda n: 1 / math.sqrt(n * positive))
    return Rule(nearest, inside, through_step, top="learned", learned=learned)


def crown_q(settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """CROWN-Q: a penalty ``λ Σ h s²/12``, with STE late. ``weight``: λ. ``variant``: "published" (``h = w²``, s
    detached: a weight decay) or "true" (``h`` a given curvature, s attached; LOTION's penalty at a uniform phase, claim
    C16). ``levels``: ``s = top / levels``, by default the step of the grid. ``late``: when STE sets in (share or
    step)."""
    true = _choice(settings, "variant", ("published", "true")) == "true"
    levels, late = settings["levels"], as_step(settings["late"], total_steps, "late")
    ratio = _step_of(book, "crown_q") if levels is None else 1 / number(levels, "levels", 2.0**-126)
    weight = number(settings["weight"], "weight", 0.0)

    def weight_then_nearest(p: Place, a: Parameters) -> Tensor:
        return torch.where(torch.as_tensor(a[0], device=p.w.device), p.near, p.w)

    def shrinking(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        step = p.top * ratio
        return g + weight * p.w * (step * step) / 6

    def through_step(p: Place, g: Tensor, h: Any, a: Parameters) -> Tensor:
        return weight * h * (p.top * (ratio * ratio)) / 6

    def parameters(step: Tensor) -> Parameters:
        return (step >= late,)

    if true:
        return Rule(weight_then_nearest, anchor=through_step, parameters=parameters, curvature=True, linear=False)
    return Rule(weight_then_nearest, shrinking, parameters=parameters, linear=False)


Builder = Callable[[Mapping[str, Any], Codebook, int | None], Rule]

METHODS: dict[str, tuple[Builder, dict[str, Any]]] = {
    "qat": (qat, {"scale": "detached"}),
    "rr_ste": (rr_ste, {}),
    "cage": (cage, {"weight": 10.0, "silent": 0.8, "ramp": "linear", "form": "decoupled", "point": "nearest"}),
    "quest": (quest, {"grid": "rms"}),
    "lsq": (lsq, {}),
    "diffq": (diffq, {"scale": "attached", "variance": 1 / 12}),
    "crown_q": (crown_q, {"weight": 0.01, "variant": "published", "levels": None, "late": 0.85}),
}
"""Methods by name: what builds the rule, and the defaults of its settings."""
ALIASES = {"noise": "diffq"}


def rule_of(method: str, settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> Rule:
    """The rule of ``method`` with ``settings`` over its defaults; ValueError for unknown names, which lists the
    valid."""
    method = ALIASES.get(method, method)
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid: {', '.join((*METHODS, *ALIASES))}")
    build, defaults = METHODS[method]
    for key in settings:
        if key not in defaults:
            raise ValueError(f"{method} has no setting {key!r}; valid: {', '.join(defaults) or 'none'}")
    rule = build({**defaults, **settings}, book, total_steps)
    return replace(rule, made=(method, dict(settings), book, total_steps))
