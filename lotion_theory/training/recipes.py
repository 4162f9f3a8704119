"""Callbacks for Hugging Face's Trainer and for Lightning; neither package is imported before its callback is made.

A plain loop needs no recipe:

>>> penalty = LotionPenalty(model, "int4/absmax/block=32", ramp=(0.0, 0.5), total_steps=steps)
>>> for x, y in data:
...     criterion(model(x), y).backward()
...     penalty.observe(batch_size=len(x))
...     penalty.add_gradient_()
...     optimizer.step(), optimizer.zero_grad(), penalty.step()
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import integer, number
from .curvature import Optimizers
from .penalty import LotionPenalty
from .straight_through import StraightThrough


class Hooks:
    """What a training loop calls where: :meth:`begin` before the first backward pass of a step, :meth:`before_step`
    after the last one, :meth:`after_step` after the optimizer's.

    ``batch_size``: samples behind the gradient of a step (for curvature "fisher" and "kfac"). ``max_norm``: clip to
    this norm after everything was added; None leaves that to the loop. ``closure``: for a penalty whose curvature
    passes of its own measure, what its method ``measure`` takes, on a batch of the step; callbacks of frameworks set
    it. ``passes``: how many of such batches are behind the gradient of a step.
    """

    def __init__(
        self,
        penalty: LotionPenalty | None = None,
        straight_through: StraightThrough | None = None,
        batch_size: int | None = None,
        max_norm: float | None = None,
    ) -> None:
        if penalty is None and straight_through is None:
            raise ValueError("give penalty, straight_through, or both")
        if penalty is not None and penalty.kind in ("fisher", "kfac") and batch_size is None:
            raise ValueError(
                f"curvature={penalty.kind!r} needs batch_size, the number of samples behind a step's gradient"
            )
        self.penalty, self.straight_through = penalty, straight_through
        self.batch_size = None if batch_size is None else integer(batch_size, "batch_size")
        self.max_norm = None if max_norm is None else number(max_norm, "max_norm", 0.0, open_below=True)
        self.closure: Callable[[], Tensor] | None = None
        self.passes = 1
        self._inside = False
        self._watched: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def measures(self) -> bool:
        """Whether the penalty's curvature comes of passes of its own."""
        return self.penalty is not None and (self.penalty.curvature_at != "weight" or self.penalty.kind == "hutchinson")

    @property
    def by_loss(self) -> bool:
        """Whether these passes take the mean loss, which a framework has; those of "gnb" take outputs."""
        return self.measures and self.penalty is not None and self.penalty.kind != "gnb"

    @property
    def parts(self) -> dict[str, LotionPenalty | StraightThrough]:
        """The penalty and the straight-through trainer, where given, by name."""
        both = {"penalty": self.penalty, "straight_through": self.straight_through}
        return {name: part for name, part in both.items() if part is not None}

    def start(self, model: nn.Module) -> None:
        """Before training: leave what an interrupted run has left, and act on ``model``, which a framework may have
        made anew; on another one from the first step. ValueError where it lacks parameters of the names."""
        self.end()
        own = {id(p) for p in model.parameters()}
        for part in self.parts.values():
            if not all(id(item.parameter) in own for item in part.items):
                part.follow_(model)
        self.leave()
        if self.penalty is not None and self.penalty.kind == "kfac":
            self._watched = self.penalty.watch(model)

    def leave(self) -> None:
        """After training: put the weights back, and record no more."""
        self.end()
        while self._watched:
            self._watched.pop().remove()

    def begin(self) -> None:
        """Put the quantized weights in; once per optimizer step (further calls do nothing)."""
        if self.straight_through is not None and not self._inside:
            self.straight_through.__enter__()
            self._inside = True

    def end(self) -> None:
        """Put the weights back, e.g. where a loop stops early."""
        if self.straight_through is not None and self._inside:
            self._inside = False
            self.straight_through.__exit__(None)

    def before_step(self, optimizer: Optimizers, parameters: Iterable[nn.Parameter]) -> None:
        """Put the weights back and see to the gradients."""
        self.end()
        self._see_to_curvature()
        if self.straight_through is not None:
            self.straight_through.before_step_(optimizer)
        if self.penalty is not None and self.penalty.kind == "adam":
            self.penalty.apply_(optimizer)
        elif self.penalty is not None and self.penalty.curvature.ready:
            self.penalty.add_gradient_()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)

    def _see_to_curvature(self) -> None:
        penalty = self.penalty
        if penalty is None or not (self.measures or penalty.kind in ("fisher", "kfac")):
            return
        if not self.measures:
            assert self.batch_size is not None, "checked when made"
            penalty.observe(self.batch_size)
        elif self.closure is None:
            raise RuntimeError(f"curvature_at = {penalty.curvature_at!r}: set closure to what measure() takes")
        else:
            penalty.measure(self.closure, None if self.batch_size is None else max(1, self.batch_size // self.passes))

    def after_step(self, stepped: bool = True) -> None:
        """Count the step; with ``stepped=False``, where a gradient scaler has left it out, do not."""
        for part in self.parts.values():
            if stepped:
                part.step()
            else:
                part.forget_step()

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the states of the parts there are."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a :meth:`state_dict` of the same parts; ValueError for another one."""
        if set(state) != set(self.parts):
            raise ValueError(f"state of {', '.join(sorted(state))}, expected {', '.join(sorted(self.parts))}")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])


def trainer_callback(
    penalty: LotionPenalty | None = None,
    straight_through: StraightThrough | None = None,
    batch_size: int | None = None,
    max_norm: float | None = None,
) -> Any:
    """A ``TrainerCallback`` for Hugging Face's Trainer; arguments as for :class:`Hooks`.

    >>> Trainer(model, TrainingArguments(..., max_grad_norm=0), callbacks=[trainer_callback(penalty, batch_size=64)])

    The Trainer clips before its callbacks see the gradients: with "fisher", or a penalty to be clipped along, set
    ``max_grad_norm=0`` and give ``max_norm`` here. With each of the Trainer's checkpoints the state is written, to
    ``lotion.pt`` in its folder, and read from the folder that training resumes from. A model that the Trainer makes
    anew (``model_init``, a hyperparameter search) is followed by the names of its parameters, from the first step.
    Where the curvature is measured by passes of its own (``curvature_at``), each takes the last batch of its step;
    of "gnb" set ``callback.hooks.closure``.
    ValueError when training begins with ``max_grad_norm`` and "fisher", with fp16, whose gradients are scaled, if it
    resumes from a checkpoint without that file or with that of another step, and if its model lacks the parameters.
    """
    from transformers import TrainerCallback

    class LotionCallback(_OfTrainer, TrainerCallback):
        def __init__(self) -> None:
            self.hooks = Hooks(penalty, straight_through, batch_size, max_norm)

    return LotionCallback()


class _OfTrainer:
    """What the callback of :func:`trainer_callback` does, beside Hugging Face's base class."""

    hooks: Hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if args.fp16:
            raise ValueError("fp16=True scales the gradients that the callback sees; use bf16")
        penalty = self.hooks.penalty
        if args.max_grad_norm and penalty is not None and penalty.kind == "fisher" and not self.hooks.measures:
            raise ValueError(
                f"max_grad_norm = {args.max_grad_norm} clips the gradients before the curvature sees them: set it "
                "to 0 and give max_norm to the callback"
            )
        self.hooks.start(more["model"])
        if state.global_step:
            self._resume(args, state.global_step)

    def _resume(self, args: Any, step: int) -> None:
        _, found = _caller("resume_from_checkpoint")
        path = (Path(found) if found else Path(args.output_dir) / f"checkpoint-{step}") / "lotion.pt"
        if not path.is_file():
            raise ValueError(f"training resumes at step {step}, but the callback's {path} is missing")
        saved = torch.load(path, "cpu", weights_only=True)
        if saved.pop("global_step", None) != step:
            raise ValueError(f"training resumes at step {step}, but {path} is the state of another step")
        self.hooks.load_state_dict(saved)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            trainer, trial = _caller("trial")
            # In a search each trial has a folder of its own.
            folder = Path(args.output_dir if trial is None else trainer._get_output_dir(trial))
            saved = {**self.hooks.state_dict(), "global_step": state.global_step}
            torch.save(saved, folder / f"checkpoint-{state.global_step}" / "lotion.pt")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.hooks.begin()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.hooks.by_loss:
            trainer, inputs = _caller("inputs")
            self.hooks.closure = partial(_loss_of_trainer, trainer, inputs)
            self.hooks.passes = args.gradient_accumulation_steps
        self.hooks.before_step(more["optimizer"], more["model"].parameters())

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.hooks.after_step()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.hooks.leave()


def _loss_of_trainer(trainer: Any, inputs: Any) -> Tensor:
    """The mean loss of Hugging Face's trainer on a batch, as in its own training step."""
    inputs = trainer._prepare_inputs(inputs)
    with trainer.compute_loss_context_manager():
        return trainer.compute_loss(trainer.model_wrapped, inputs)


def _caller(name: str) -> tuple[Any, Any]:
    """The nearest caller that is a method of a ``Trainer`` and has a local variable ``name``, and its value; (None,
    None) without one. Hugging Face tells its callbacks neither the trainer nor the folder that it resumes from."""
    from transformers import Trainer

    frame = sys._getframe(1)
    while frame is not None:
        own = frame.f_locals
        if name in own and isinstance(own.get("self"), Trainer):
            return own["self"], own[name]
        frame = frame.f_back  # type: ignore[assignment]
    return None, None


def _lightning() -> Any:
    """Lightning under either of its names."""
    try:
        return import_module("lightning.pytorch")
    except ImportError:
        return import_module("pytorch_lightning")


def lightning_callback(
    penalty: LotionPenalty | None = None,
    straight_through: StraightThrough | None = None,
    batch_size: int | None = None,
    max_norm: float | None = None,
) -> Any:
    """A ``Callback`` for Lightning's Trainer with automatic optimization and one optimizer; arguments as for
    :class:`Hooks`. Lightning clips after its callbacks: use its ``gradient_clip_val``. Its checkpoints hold the state.
    Passes that measure the curvature (``curvature_at``) run ``training_step`` on the last batch, without its logs.
    ValueError when training begins with manual optimization, or with a module that lacks the parameters.

    >>> L.Trainer(callbacks=[lightning_callback(penalty, batch_size=64)])
    """
    base: Any = _lightning().Callback

    class LotionCallback(_OfLightning, base):
        def __init__(self) -> None:
            self.hooks = Hooks(penalty, straight_through, batch_size, max_norm)

    return LotionCallback()


class _OfLightning:
    """What the callback of :func:`lightning_callback` does, beside Lightning's base class."""

    hooks: Hooks
    _optimizer: Any = None
    _due = _taken = False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        # Before the state of a checkpoint is loaded.
        if stage != "fit":
            return
        if not pl_module.automatic_optimization:
            raise ValueError("manual optimization has no fixed order of steps: call recipes.Hooks from the module")
        self.hooks.start(pl_module)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.hooks.by_loss:
            self.hooks.closure = partial(_loss_of_module, pl_module, batch, batch_idx)
            self.hooks.passes = trainer.accumulate_grad_batches
        self.hooks.begin()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any, *_: Any) -> None:
        if self._optimizer is not optimizer:
            self._optimizer = optimizer
            optimizer.register_step_post_hook(self._after)
        self.hooks.before_step(optimizer, pl_module.parameters())
        self._due, self._taken = True, False

    def _after(self, *_: Any) -> None:
        self._taken = True

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        if self._due:
            # Under AMP a gradient scaler leaves out steps that overflow.
            self.hooks.after_step(self._taken)
            self._due = False

    def state_dict(self) -> dict[str, Any]:
        return self.hooks.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.hooks.load_state_dict(state_dict)

    def on_validation_start(self, *_: Any) -> None:
        self.hooks.end()

    def on_train_end(self, *_: Any) -> None:
        self.hooks.leave()

    def on_exception(self, *_: Any) -> None:
        self.hooks.leave()


def _loss_of_module(module: Any, batch: Any, number: int) -> Tensor:
    """The loss of a Lightning module's training step, which logs nothing meanwhile."""
    module.log = module.log_dict = lambda *_, **__: None
    try:
        with module.trainer.precision_plugin.train_step_context():
            found = module.training_step(batch, number)
    finally:
        del module.log, module.log_dict
    return found["loss"] if isinstance(found, Mapping) else found
