"""Training methods on tensors: the functions of :mod:`lotion_theory.methods`, at places worked out when asked for.

No method is written here. What is particular to torch: the clock counts steps in a tensor, so that compiled code reads
them, and a learned highest level is a parameter of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..formats.codebooks import Codebook
from ..methods import LearnedTop, Method, Rule
from ..methods.rule import at_nearest, at_rounded, straight_through
from .fake import Levels, Sides, ordered, ordered_units
from .schedules import Moment, Ramp, as_step

Numbers = tuple[Tensor | float, ...]
"""The parameters ``a`` of a step."""


class Place:
    """Where weights lie on their lattices, as :class:`lotion_theory.methods.Place`. ``w`` (blocks, n) or some of its
    columns, ``top`` (blocks, 1), ``u``: uniforms of ``w``'s shape or None. ``n``: weights in a block, by default as
    many as ``w`` has columns. The levels are worked out when a method asks for them."""

    def __init__(self, w: Tensor, top: Tensor, levels: Levels, u: Tensor | None = None, n: int | None = None) -> None:
        self.w, self.top, self.u, self._levels = w, top, u, levels
        self.n = w.shape[-1] if n is None else n
        self._sides: Sides | None = None
        self._near: Tensor | None = None

    def _found(self) -> Sides:
        if self._sides is None:
            self._sides = self._levels.sides(self.w, self.top)
        return self._sides

    @property
    def lo(self) -> Tensor:
        return ordered(self._found())[0]

    @property
    def hi(self) -> Tensor:
        return ordered(self._found())[1]

    @property
    def near(self) -> Tensor:
        if self._near is None:
            self._near = self._levels.nearest(self.w, self.top)
        return self._near

    @property
    def unit_lo(self) -> Tensor:
        return ordered_units(self._found())[0]

    @property
    def unit_hi(self) -> Tensor:
        return ordered_units(self._found())[1]

    @property
    def unit_near(self) -> Tensor:
        return self._levels.unit_of(self.near, self.w, self.top)


class Steps:
    """The clock of torch loops: ``step`` is a 0-dimensional tensor, moments are steps (int) or shares of
    ``total_steps`` (float). ValueError for a share where that is None."""

    def __init__(self, step: Tensor, total_steps: int | None) -> None:
        self.step, self.total = step, total_steps

    def since(self, moment: Moment, name: str = "start") -> Tensor:
        return (self.step >= as_step(moment, self.total, name)).to(torch.float64)

    def ramp(self, start: Moment, end: Moment, name: str = "start") -> Tensor:
        as_step(start, self.total, name)
        as_step(end, self.total, f"the end of {name}")
        return Ramp(start, end, self.total).at(self.step)

    def ends(self, parts: int) -> Tensor:
        if self.total is None:
            raise ValueError(f"{parts} equal parts of training need total_steps")
        part = (self.step * parts) // self.total
        return (((self.step + 1) * parts) // self.total > part).to(torch.float64)


@dataclass(frozen=True)
class TensorRule:
    """A rule on the levels that it trains on, ``book``. ``own``: whether they are not those of the format."""

    rule: Rule
    book: Codebook
    own: bool
    total_steps: int | None

    def parameters(self, step: Tensor) -> Numbers:
        """``a`` at a step, a 0-dimensional tensor."""
        return self.rule.parameters.columns(Steps(step, self.total_steps))

    @property
    def point(self) -> Callable[..., Tensor]:
        return self.rule.point

    @property
    def direction(self) -> Callable[..., Tensor] | None:
        """None where the gradient stays as it is."""
        return None if self.rule.direction is straight_through else self.rule.direction

    @property
    def anchor(self) -> Callable[..., Tensor] | None:
        return self.rule.anchor

    @property
    def pull(self) -> Callable[..., Tensor] | None:
        """What is taken off the weights beside the optimizer."""
        return self.rule.decay

    @property
    def top(self) -> str:
        return self.rule.top

    @property
    def learned(self) -> LearnedTop | None:
        return self.rule.learned

    @property
    def curvature(self) -> bool:
        """Whether the functions use ``h``."""
        return self.rule.curvature != "none"

    @property
    def linear(self) -> bool:
        """Whether what it makes of gradients is proportional to them."""
        return self.rule.linear

    @property
    def corrects(self) -> bool:
        """Whether anything is done to gradients or weights around the optimizer's step."""
        return self.direction is not None or self.anchor is not None or self.pull is not None

    @property
    def casts(self) -> bool:
        """Whether the loss is evaluated at the cast to the format itself."""
        return self.point is at_nearest and self.top == "absmax" and not self.own

    @property
    def rounds(self) -> bool:
        """Whether the loss is evaluated at a randomized rounding."""
        return self.point is at_rounded


METHODS: dict[str, Method] = {
    name: methods.method(name) for name in methods.names() if not methods.method(name).instead
}
"""The methods of straight-through training by name."""
ALIASES = {"noise": "diffq"}


def settings_of(method: str) -> dict[str, Any]:
    """The settings of a method here, with their defaults; ValueError for an unknown method, which lists the valid."""
    name = ALIASES.get(method, method)
    if name not in METHODS and name in methods.names():
        raise ValueError(f"method {name} is no straight-through training: {methods.method(name).instead}")
    if name not in METHODS:
        raise ValueError(f"unknown method {method!r}; valid: {', '.join((*METHODS, *ALIASES))}")
    return METHODS[name].looped(METHODS[name].settings)


def rule_of(method: str, settings: Mapping[str, Any], book: Codebook, total_steps: int | None) -> TensorRule:
    """The rule of ``method`` with ``settings`` over its defaults on the levels ``book`` of a format.

    Raises ValueError for unknown names, listing the valid ones, for settings that are not valid, for shares of training
    where ``total_steps`` is None, and for levels that the method cannot serve.
    """
    defaults = settings_of(method)
    for key in settings:
        if key not in defaults:
            raise ValueError(f"{method} has no setting {key!r}; valid: {', '.join(defaults) or 'none'}")
    found = METHODS[ALIASES.get(method, method)]
    names = {other: key for key, other in found.spelled.items()}
    given = found(**{names.get(key, key): value for key, value in settings.items()})
    rule, own = given.on(book)
    bound = TensorRule(rule, own, given.book is not None, total_steps)
    bound.parameters(torch.zeros((), dtype=torch.int64))
    return bound
