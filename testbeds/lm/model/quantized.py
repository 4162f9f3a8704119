"""Training methods of ``lotion_theory.training`` as hooks of the language-model trainer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from lotion_theory import Quantizer
from lotion_theory.arguments import count, is_real
from lotion_theory.methods import lotion
from lotion_theory.methods import method as training_method
from lotion_theory.training import METHODS, LotionPenalty, StraightThrough, gnb_update
from lotion_theory.training.rules import settings_of

from .hooks import Setting, Step

LOTION = {
    **lotion.METHOD.looped(lotion.METHOD.settings),
    "curvature": "fisher", "every": 10, "decay": 0.99,
}  # fmt: skip
"""Settings of ``lotion``: λ; share of training over which it grows from 0; "attached" or "detached" scale; curvature
"fisher" (moving average of squared loss gradients), "kfac" (their factors), "gnb" (sampled labels, every so many steps)
or "adam" (the optimizer's own average; the penalty then moves the weights beside it); where it is measured, elsewhere
than at the weight by a pass of its own over the first micro-batch, every so many steps; these steps; decay of the
averages."""
_OF_ONE = ("gnb", "kfac")
_CURVATURES = ("fisher", "gnb", "kfac", "adam")


class Lotion:
    """LOTION: the loss gradient at the weights plus the penalty's, before clipping (arXiv 2510.08757)."""

    def __init__(self, setting: Setting) -> None:
        self.settings = resolved("lotion", setting.settings, LOTION)
        s = self.settings
        if not 0 <= s["ramp"] <= 1:
            raise ValueError(f"method.settings.ramp = {s['ramp']!r}; must lie in [0, 1]")
        s["every"] = count("method.settings.every", s["every"])
        if s["curvature"] not in _CURVATURES:
            raise ValueError(f"method.settings.curvature = {s['curvature']!r}; valid: {', '.join(_CURVATURES)}")
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            _check_several(s, torch.distributed.get_world_size())
        assert setting.quantizer is not None, "the trainer gives every method but none its quantizer"
        self.model, self.optimizer, self.seed = setting.model, setting.optimizer, setting.seed
        self.penalty = LotionPenalty(
            _parameters(setting), setting.quantizer, curvature=s["curvature"], scale_gradient=s["scale"],
            weight=s["weight"], decay=s["decay"], optimizer=setting.optimizer, batch_size=setting.tokens,
            curvature_at=s["curvature_at"], curvature_every=s["every"], seed=setting.seed,
        )  # fmt: skip
        if s["curvature"] == "kfac":
            self.penalty.watch(self.model)
        if setting.compiled:
            self.penalty.compile()

    def before_forward(self, step: Step) -> None:
        """Where the curvature takes one, an own forward and backward pass over the first micro-batch when it is due."""
        gnb, own = self.settings["curvature"] == "gnb", self.settings["curvature_at"] != "weight"
        if not (gnb or own) or step.number % self.settings["every"]:
            return
        x, y = step.batches[0]
        if gnb and not own:
            gnb_update(self.penalty, self.model(x), seed=self.seed)
            return
        with self.penalty.measuring():
            if gnb:
                gnb_update(self.penalty, self.model(x), seed=self.seed)
            else:
                self.model(x, y).backward()
                self.penalty.observe(y.numel())
        # The other parameters' gradients, of which there are none yet in this step.
        self.optimizer.zero_grad(set_to_none=True)

    def after_backward(self, step: Step) -> None:
        """Curvature from the loss gradient, then the penalty's gradient on top of it."""
        share = min(1.0, step.number / step.steps / self.settings["ramp"]) if self.settings["ramp"] else 1.0
        self.penalty.weight = self.settings["weight"] * share
        if self.settings["curvature"] == "adam":
            self.penalty.apply_(self.optimizer)
            return
        if self.settings["curvature"] != "gnb" and self.settings["curvature_at"] == "weight":
            self.penalty.observe(step.tokens)
        self.penalty.add_gradient_()

    def after_step(self, step: Step) -> None:
        """Counts the step."""
        self.penalty.step()

    def grid(self, name: str, w: Tensor) -> Quantizer | None:
        """The run's format."""
        return None

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


def _check_several(s: Mapping[str, Any], processes: int) -> None:
    """ValueError for curvature that several processes would each have of their own."""
    if processes > 1 and s["curvature"] in _OF_ONE:
        raise ValueError(
            f"method.settings.curvature = {s['curvature']!r} is that of each process; use 'fisher' on several"
        )
    if processes > 1 and s["curvature_at"] != "weight":
        raise ValueError(
            f"method.settings.curvature_at = {s['curvature_at']!r} measures on each process; use 'weight' on several"
        )


class Straight:
    """The methods of :class:`lotion_theory.training.StraightThrough`.

    LSQ and PACT have a setting of ours, ``rate``. What they learn has an AdamW of its own, without decay or clipping,
    at ``rate`` times the learning rate.
    """

    def __init__(self, setting: Setting, method: str) -> None:
        s = resolved(method, setting.settings, defaults(method))
        assert setting.quantizer is not None, "the trainer gives every method but none its quantizer"
        self.optimizer = setting.optimizer
        rate = s.pop("rate", 1.0)
        if not is_real(rate) or not rate > 0:
            raise ValueError(f"method.settings.rate = {rate!r}; must be positive")
        self.through = StraightThrough(
            _parameters(setting), setting.quantizer, method, start=s.pop("start"), total_steps=setting.steps,
            seed=setting.seed, **s,
        )  # fmt: skip
        self.rate = rate
        self.steps = None
        if self.through.parameters():
            given = setting.optimizer.defaults
            self.steps = torch.optim.AdamW(
                self.through.parameters(), given["lr"], given["betas"], given["eps"], weight_decay=0.0
            )
        if setting.compiled:
            self.through.compile()

    def before_forward(self, step: Step) -> None:
        """Puts the quantized values into the parameters."""
        self.through.__enter__()

    def after_backward(self, step: Step) -> None:
        """Puts the weights back and corrects the gradients."""
        self.through.__exit__(None, None, None)
        # With learned steps there is a second optimizer; only a decoupled pull needs the first.
        self.through.before_step_(self.optimizer if self.steps is None else None)

    def after_step(self, step: Step) -> None:
        """New learned steps and noise; the gate moves."""
        if self.steps is not None:
            self.steps.param_groups[0]["lr"] = step.lr * self.rate
            self.steps.step()
            self.steps.zero_grad(set_to_none=True)
        self.through.step()

    def grid(self, name: str, w: Tensor) -> Quantizer | None:
        """That of LSQ and QuEST; the run's format for the others."""
        return self.through.quantizer(name, w)

    def metrics(self) -> dict[str, float]:
        """``active``: 1 while the forward pass sees quantized weights, else 0. On a grid of its own also ``clipped``,
        the share of (this process's) weights beyond its range."""
        numbers = {"active": float(self.through.active)}
        if training_method(self.through.method).grid == "absmax":
            return numbers
        return {**numbers, "clipped": self.through.clipped()}

    def state_dict(self) -> dict[str, Any]:
        """The step; for LSQ also the learned steps and their optimizer's state."""
        state = self.through.state_dict()
        return state if self.steps is None else {**state, "optimizer": self.steps.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self.through.load_state_dict({key: value for key, value in state.items() if key != "optimizer"})
        if self.steps is not None:
            self.steps.load_state_dict(state["optimizer"])


def own_grid(
    method: str, weights: Mapping[str, Any], quantizer: Quantizer, settings: Mapping[str, Any], steps: int
) -> StraightThrough:
    """The method, to be asked for the grids of ``weights`` once it has taken the state that :class:`Straight` left."""
    s = {key: value for key, value in settings.items() if key != "rate"}
    return StraightThrough(list(weights.items()), quantizer, method, total_steps=steps, **s)


def _parameters(setting: Setting) -> list[tuple[str, Any]]:
    """Names and parameters to be quantized."""
    return list(setting.weights.items())


def resolved(method: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``defaults``; ValueError for a setting the method does not have."""
    for key in given:
        if key not in defaults:
            raise ValueError(f"method.settings: {method} has no setting {key!r}; valid: {', '.join(defaults)}")
        number = isinstance(defaults[key], int | float) and not isinstance(defaults[key], bool)
        if number and not _is_number(given[key]):
            raise ValueError(f"method.settings.{key} = {given[key]!r}; must be a finite number")
    return {**defaults, **given}


def _is_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def defaults(method: str) -> dict[str, Any]:
    """The settings of a method with their defaults; empty for plain training."""
    if method == "lotion":
        return dict(LOTION)
    if method not in METHODS:
        return {}
    learned = METHODS[method].grid == "learned"
    return {**settings_of(method), "start": 0.0, **({"rate": 1.0} if learned else {})}


def maker(name: str) -> Callable[[Setting], Any]:
    """What makes the method called ``name`` from a :class:`Setting`."""
    return Lotion if name == "lotion" else lambda setting: Straight(setting, name)
