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

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .penalty import LotionPenalty
from .straight_through import StraightThrough


class Hooks:
    """What a training loop calls where: :meth:`begin` before the first backward pass of a step, :meth:`before_step`
    after the last one, :meth:`after_step` after the optimizer's.

    ``batch_size``: samples behind the gradient of a step (for curvature "fisher"). ``max_norm``: clip to this norm
    after everything was added; None leaves that to the loop.
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
        if penalty is not None and penalty.kind == "fisher" and batch_size is None:
            raise ValueError("curvature='fisher' needs batch_size, the number of samples behind a step's gradient")
        self.penalty, self.straight_through = penalty, straight_through
        self.batch_size, self.max_norm = batch_size, max_norm
        self._inside = False

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

    def before_step(self, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
        """Put the weights back and see to the gradients."""
        self.end()
        if self.penalty is not None and self.penalty.kind == "fisher":
            assert self.batch_size is not None, "checked when made"
            self.penalty.observe(self.batch_size)
        if self.straight_through is not None:
            self.straight_through.before_step_(optimizer)
        if self.penalty is not None and self.penalty.kind == "adam":
            self.penalty.apply_(optimizer)
        elif self.penalty is not None and self.penalty.curvature.ready:
            self.penalty.add_gradient_()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)

    def after_step(self) -> None:
        """Count the step."""
        for part in (self.straight_through, self.penalty):
            if part is not None:
                part.step()

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs: the states of the parts there are."""
        parts = {"penalty": self.penalty, "straight_through": self.straight_through}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back a :meth:`state_dict` of the same parts; ValueError for another one."""
        if set(state) != set(self.state_dict()):
            raise ValueError(f"state of {', '.join(sorted(state))}, expected {', '.join(sorted(self.state_dict()))}")
        for name, part in (("penalty", self.penalty), ("straight_through", self.straight_through)):
            if part is not None:
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
    ``lotion.pt``, and read when training resumes from it. ValueError when training begins with ``max_grad_norm`` and
    "fisher", with fp16, whose gradients are scaled, and if it resumes from a checkpoint without that file.
    """
    from transformers import TrainerCallback

    class LotionCallback(TrainerCallback):
        def __init__(self) -> None:
            self.hooks = Hooks(penalty, straight_through, batch_size, max_norm)

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if args.fp16:
                raise ValueError("fp16=True scales the gradients that the callback sees; use bf16")
            if args.max_grad_norm and penalty is not None and penalty.kind == "fisher":
                raise ValueError(
                    f"max_grad_norm = {args.max_grad_norm} clips the gradients before the curvature sees them: set it "
                    "to 0 and give max_norm to the callback"
                )
            if state.global_step:
                path = self._file(args, state)
                if not path.is_file():
                    raise ValueError(
                        f"training resumes at step {state.global_step}, but the callback's {path} is missing"
                    )
                self.hooks.load_state_dict(torch.load(path, "cpu", weights_only=True))

        def _file(self, args: Any, state: Any) -> Path:
            return Path(args.output_dir) / f"checkpoint-{state.global_step}" / "lotion.pt"

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.is_world_process_zero:
                torch.save(self.hooks.state_dict(), self._file(args, state))

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.hooks.begin()

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.hooks.before_step(more["optimizer"], more["model"].parameters())

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.hooks.after_step()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.hooks.end()

    return LotionCallback()


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

    >>> L.Trainer(callbacks=[lightning_callback(penalty, batch_size=64)])
    """
    base: Any = _lightning().Callback

    class LotionCallback(base):
        def __init__(self) -> None:
            self.hooks = Hooks(penalty, straight_through, batch_size, max_norm)
            self._stepped = False

        def on_train_batch_start(self, *_: Any, **__: Any) -> None:
            self.hooks.begin()

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any, *_: Any) -> None:
            self.hooks.before_step(optimizer, pl_module.parameters())
            self._stepped = True

        def on_train_batch_end(self, *_: Any, **__: Any) -> None:
            if self._stepped:
                self.hooks.after_step()
                self._stepped = False

        def state_dict(self) -> dict[str, Any]:
            return self.hooks.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.hooks.load_state_dict(state_dict)

        def on_validation_start(self, *_: Any) -> None:
            self.hooks.end()

        def on_exception(self, *_: Any) -> None:
            self.hooks.end()

    return LotionCallback()
