"""Training methods of ``lotion_theory.training`` as hooks of the language-model trainer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from lotion_theory.training import METHODS as STRAIGHT_THROUGH
from lotion_theory.training import LotionPenalty, StraightThrough, gnb_update

from .methods import Setting, Step

LOTION = {"weight": 1.0, "ramp": 0.0, "scale": "attached", "curvature": "fisher", "every": 10, "decay": 0.99}
"""Settings of ``lotion``: λ; share of training over which it grows from 0; "attached" or "detached" scale; curvature
"fisher" (moving average of squared loss gradients), "gnb" (sampled labels, every so many steps) or "adam" (the
optimizer's own average; the penalty then moves the weights beside it); steps between "gnb" updates; decay of the
averages."""


class Lotion:
    """LOTION: the loss gradient at the weights plus the penalty's, before clipping (arXiv 2510.08757)."""

    def __init__(self, setting: Setting) -> None:
        self.settings = resolved("lotion", setting.settings, LOTION)
        s = self.settings
        if not 0 <= s["ramp"] <= 1:
            raise ValueError(f"method.settings.ramp = {s['ramp']!r}; must lie in [0, 1]")
        if type(s["every"]) is not int or s["every"] < 1:
            raise ValueError(f"method.settings.every = {s['every']!r}; must be a positive integer")
        several = torch.distributed.is_available() and torch.distributed.is_initialized()
        if s["curvature"] == "gnb" and several and torch.distributed.get_world_size() > 1:
            raise ValueError("method.settings.curvature = 'gnb' draws labels on each process; use 'fisher' on several")
        if s["curvature"] not in ("fisher", "gnb", "adam"):
            raise ValueError(f"method.settings.curvature = {s['curvature']!r}; valid: fisher, gnb, adam")
        assert setting.quantizer is not None, "the trainer gives every method but none its quantizer"
        self.model, self.optimizer, self.seed = setting.model, setting.optimizer, setting.seed
        self.penalty = LotionPenalty(
            _parameters(setting), setting.quantizer, curvature=s["curvature"], scale_gradient=s["scale"],
            weight=s["weight"], decay=s["decay"], optimizer=setting.optimizer, batch_size=setting.tokens,
        )  # fmt: skip
        if setting.compiled:
            self.penalty.compile()

    def before_forward(self, step: Step) -> None:
        """With "gnb", an own forward and backward pass over the first micro-batch when it is due."""
        if self.settings["curvature"] == "gnb" and step.number % self.settings["every"] == 0:
            gnb_update(self.penalty, self.model(step.batches[0][0]), seed=self.seed)

    def after_backward(self, step: Step) -> None:
        """Curvature from the loss gradient, then the penalty's gradient on top of it."""
        share = min(1.0, step.number / step.steps / self.settings["ramp"]) if self.settings["ramp"] else 1.0
        self.penalty.weight = self.settings["weight"] * share
        if self.settings["curvature"] == "adam":
            self.penalty.apply_(self.optimizer)
            return
        if self.settings["curvature"] == "fisher":
            self.penalty.observe(step.tokens)
        self.penalty.add_gradient_()

    def after_step(self, step: Step) -> None:
        """Counts the step."""
        self.penalty.step()

    def metrics(self) -> dict[str, float]:
        """The penalty's value."""
        if not self.penalty.curvature.ready:
            return {}
        with torch.no_grad():
            return {"penalty": float(sum(self.penalty.parts().values()))}

    def state_dict(self) -> dict[str, Any]:
        """Curvature and step."""
        return self.penalty.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.penalty.load_state_dict(state)


class Straight:
    """QAT, RR-STE, CAGE, DiffQ and CROWN-Q through :class:`lotion_theory.training.StraightThrough`."""

    def __init__(self, setting: Setting, method: str) -> None:
        defaults = {**STRAIGHT_THROUGH[method][1], "start": 0.0}
        s = resolved(method, setting.settings, defaults)
        assert setting.quantizer is not None, "the trainer gives every method but none its quantizer"
        self.optimizer = setting.optimizer
        self.through = StraightThrough(
            _parameters(setting), setting.quantizer, method, start=s.pop("start"), total_steps=setting.steps,
            seed=setting.seed, **s,
        )  # fmt: skip
        if setting.compiled:
            self.through.compile()

    def before_forward(self, step: Step) -> None:
        """Puts the quantized values into the parameters."""
        self.through.__enter__()

    def after_backward(self, step: Step) -> None:
        """Puts the weights back and corrects the gradients."""
        self.through.__exit__(None, None, None)
        self.through.before_step_(self.optimizer)

    def after_step(self, step: Step) -> None:
        """New noise; the gate moves."""
        self.through.step()

    def metrics(self) -> dict[str, float]:
        """1 while the forward pass sees quantized weights, else 0."""
        return {"active": float(self.through.active)}

    def state_dict(self) -> dict[str, Any]:
        """The step."""
        return self.through.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.through.load_state_dict(state)


def _parameters(setting: Setting) -> list[tuple[str, Any]]:
    """Names and parameters to be quantized."""
    return list(setting.weights.items())


def resolved(method: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``defaults``; ValueError for a setting the method does not have."""
    for key in given:
        if key not in defaults:
            raise ValueError(f"method.settings: {method} has no setting {key!r}; valid: {', '.join(defaults)}")
    return {**defaults, **given}


def maker(name: str) -> Callable[[Setting], Any]:
    """What makes the method called ``name`` from a :class:`Setting`."""
    return Lotion if name == "lotion" else lambda setting: Straight(setting, name)
