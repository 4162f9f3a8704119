"""Optimizers whose steps a trainer follows by hooks: one step of training, however many optimizers take part."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from ..curvature import Optimizers, several
from ..selection import Quantized


class Trainer(Protocol):
    """What is told: before each optimizer's step, and once when a step of training is over."""

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, arguments: tuple, options: dict) -> None: ...

    def _count_step(self) -> None: ...


class Attached:
    """The optimizers that ``trainer`` is attached to.

    A step is over when each of them has stepped. Where one was left out, by a gradient scaler or because it steps more
    rarely, it is over when the next one begins: with another step of an optimizer that has stepped, or :meth:`settle`.
    Copies and pickles are not attached.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.optimizers: list[torch.optim.Optimizer] = []
        self._hooks: dict[int, list[torch.utils.hooks.RemovableHandle]] = {}
        # Those that have stepped in this step, and those between the start and the end of theirs.
        self._stepped: set[int] = set()
        self._open: set[int] = set()
        self._gradient: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return Attached(self.trainer).__dict__

    def add(self, optimizers: Iterable[Optimizers]) -> Detach:
        """Attach to those that are not attached yet; what takes them off again."""
        given = [one for each in optimizers for one in several(each)]
        if not given:
            raise ValueError("attach() needs an optimizer, or several")
        for one in given:
            if id(one) not in self._hooks:
                self.optimizers.append(one)
                self._hooks[id(one)] = [
                    one.register_step_pre_hook(self._before), one.register_step_post_hook(self._after),
                ]  # fmt: skip
        return Detach(self, given)

    def remove(self, optimizers: list[torch.optim.Optimizer]) -> None:
        """Detach."""
        for one in optimizers:
            for hook in self._hooks.pop(id(one), []):
                hook.remove()
        self.optimizers = [one for one in self.optimizers if id(one) in self._hooks]

    def settle(self) -> None:
        """Count a step that some of the optimizers have taken: what comes now belongs to the next one."""
        if self._stepped:
            self._stepped.clear()
            self.trainer._count_step()

    def _before(self, optimizer: torch.optim.Optimizer, arguments: tuple, options: dict) -> None:
        if id(optimizer) in self._stepped:
            self.settle()
        self._open.add(id(optimizer))
        self.trainer._before_optimizer(optimizer, arguments, options)

    def _after(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # Of a class that calls its base class's step() the hooks run twice, nested.
        if id(optimizer) not in self._open:
            return
        self._open.discard(id(optimizer))
        # A gradient scaler calls fused optimizers even where they are to do nothing, and says so here.
        overflow = getattr(optimizer, "found_inf", None)
        if overflow is not None and float(overflow) > 0:
            return
        self._stepped.add(id(optimizer))
        if self._stepped.issuperset(self._hooks):
            self.settle()

    def untrained(self, items: Iterable[Quantized]) -> list[str]:
        """Names of the trained parameters that none of the optimizers has."""
        return untrained(self.optimizers, items)

    def mark(self, gradient: Tensor | None) -> None:
        """Remember the gradient that something was added to, while attached."""
        if self.optimizers and not torch.compiler.is_compiling():
            self._gradient = None if gradient is None else weakref.ref(gradient)

    def renewed(self, gradient: Tensor | None) -> bool:
        """Whether the marked gradient has given way to another one: its step was left out, and it was forgotten."""
        return self._gradient is not None and self._gradient() is not gradient


class Detach:
    """Takes optimizers off a trainer again."""

    def __init__(self, attached: Attached, optimizers: list[torch.optim.Optimizer]) -> None:
        self._attached, self._optimizers = attached, optimizers

    def remove(self) -> None:
        """Detach; nothing where that has happened."""
        self._attached.remove(self._optimizers)


def untrained(optimizers: Optimizers, items: Iterable[Quantized]) -> list[str]:
    """Names of the trained parameters that none of ``optimizers`` has."""
    known = {id(p) for one in several(optimizers) for group in one.param_groups for p in group["params"]}
    return [item.name for item in items if item.trained and id(item.parameter) not in known]
