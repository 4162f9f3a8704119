"""LOTION's penalty for any torch training loop."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import integer, number
from ..formats.quantizer import Quantizer
from ._model.attached import Attached, Detach
from ._model.state import copy_state, facts, pack
from ._tensors import fused
from ._tensors.term import Term, add_gradient_, add_gradients_, jobs_of, value
from .curvature import SCALES, Fisher, Given, Moments, Optimizers, dense, steps_of, trained_by
from .kfac import Kfac
from .measuring import Measured
from .schedules import Moment, Ramp
from .selection import Quantized, follow, local, select
from .sources import FEEDS
from .sources import source as source_of

SCALE_GRADIENTS = ("attached", "detached")


class LotionPenalty(Measured):
    """``λ ½ Σ g_ii Var(RR(w)_i)``: what randomized rounding adds to the loss, to second order (arXiv 2510.08757).

    Two equivalent forms, the second without back-propagation and with a piece of the weights in memory at a time:

    >>> penalty = LotionPenalty(model, "int4/absmax/block=32", curvature="gnb")
    >>> loss = criterion(model(x), y) + penalty()

    >>> penalty = LotionPenalty(model, "int4/absmax/block=32")
    >>> criterion(model(x), y).backward()
    >>> penalty.observe(batch_size=len(x))  # the loss gradient, before anything is added to it
    >>> penalty.add_gradient_()
    >>> torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    >>> optimizer.step(), optimizer.zero_grad(), penalty.step()

    The order is: unscale (AMP), :meth:`observe`, :meth:`add_gradient_`, clip, optimizer step, :meth:`step`. Gradients
    may be accumulated over micro-batches before. Parameter groups need nothing: the gradient goes through each group's
    own learning rate. Replicas (DDP) add the same gradient; shards (FSDP2) each their own part. Penalty and buffers
    are computed in float32 for 16-bit weights, whatever autocast does. ``torch.compile(..., fullgraph=True)`` takes the
    call, :meth:`add_gradient_` and :meth:`observe`; on an accelerator compile the second, which is some thirty
    elementwise operations per tensor: :meth:`compile`.

    Args:
        named_parameters, format, include, exclude: see :func:`~lotion_theory.training.select`. Create the penalty once
            the model is on its device. Formats other than absmax scales on levels from -c to c go through
            :class:`~lotion_theory.Quantizer`.
        curvature: "fisher" (:meth:`observe`), "gnb" (:func:`~lotion_theory.training.gnb_update`), "hutchinson"
            (:func:`~lotion_theory.training.hutchinson_update`), "kfac" (:meth:`watch` and :meth:`observe`), "adam" (an
            optimizer's averages, with :meth:`apply_`), "given" (:meth:`set_curvature_`) or a mapping from names to
            tensors.
        curvature_at: where the curvature is measured: "weight", the paper's choice, "rounded", at a randomized rounding
            of the weights, or "mixture", which takes each weight from either (claim C21). The last two need
            :meth:`measure` or :meth:`measuring`, a forward and backward pass of its own every ``curvature_every``
            steps; the loss gradient stays that at the weights.
        scale_gradient: "attached", the gradient of the smoothed loss, or "detached", without the part that reaches each
            block's largest weights through the moving lattice (claim C15).
        weight: λ. ramp: (start, end) between which λ grows from 0; steps (int) or shares of ``total_steps`` (float).
        decay: of the moving averages. mean: see :class:`~lotion_theory.training.curvature.Fisher`.
        optimizer, batch_size: for "adam"; one optimizer, or several in a list. seed: of the points and of the labels or
            targets that :meth:`measure` draws.

    Raises ValueError for an argument that is not valid. State: one curvature buffer per quantized tensor (two with
    ``mean="tracked"``, none with "adam", two vectors with "kfac") and a step counter.
    """

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, nn.Parameter]],
        format: str | Quantizer,
        curvature: str | Mapping[str, Tensor] = "fisher",
        scale_gradient: str = "attached",
        weight: float = 1.0,
        ramp: tuple[Moment, Moment] = (0, 0),
        total_steps: int | None = None,
        include: tuple[str, ...] | list[str] = (),
        exclude: tuple[str, ...] | list[str] = (),
        decay: float = 0.99,
        mean: str = "neglected",
        optimizer: Optimizers | None = None,
        batch_size: int | None = None,
        curvature_at: str = "weight",
        curvature_every: int = 1,
        seed: int = 0,
    ) -> None:
        source = named_parameters if isinstance(named_parameters, nn.Module) else list(named_parameters)
        self.items: list[Quantized] = select(source, format, include, exclude)
        if scale_gradient not in SCALE_GRADIENTS:
            raise ValueError(f"scale_gradient = {scale_gradient!r}; valid: {', '.join(SCALE_GRADIENTS)}")
        if scale_gradient == "detached" and self.items[0].quantizer.scale.is_drawn:
            raise ValueError(f"format {self.items[0].quantizer} draws its scale; use scale_gradient='attached'")
        self._source = source if isinstance(source, nn.Module) else [parameter for _, parameter in source]
        self.attached = scale_gradient == "attached"
        self.weight, self.ramp = weight, Ramp(*ramp, total_steps=total_steps)
        self.kind = "given" if isinstance(curvature, Mapping) else curvature
        self.curvature = source_of(self.kind, self.items, decay, mean, optimizer, batch_size)
        self._set_place(curvature_at, curvature_every, seed)
        self.count = torch.zeros((), dtype=torch.int64, device=self.items[0].parameter.device)
        self._added = False
        self._optimizers, self._checked_optimizers = Attached(self), False
        self._fused = fused.worth(self.items)
        self._add: Callable[..., None] = add_gradient_
        if isinstance(curvature, Mapping):
            self.set_curvature_(curvature)

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code cannot be pickled.
        return self.__dict__ | {"_add": add_gradient_}

    @property
    def weight(self) -> float:
        """λ, without the ramp: a finite number of at least 0."""
        return self._weight

    @weight.setter
    def weight(self, value: float) -> None:
        self._weight = number(value, "weight", 0.0)

    # --- the penalty -------------------------------------------------------------------------------------------------

    def __call__(self) -> Tensor:
        """The penalty, a scalar to add to the loss. Its gradient reaches the weights only, never the curvature.

        Of sharded parameters the part of this process: over all processes the values add up, the gradients are
        complete.
        """
        if torch.is_grad_enabled():
            self._begin_adding("penalty()")
        return sum(self._values(), start=torch.zeros((), dtype=torch.float32, device=self.count.device))

    def parts(self) -> dict[str, Tensor]:
        """The penalty of each quantized tensor, by name; not differentiable."""
        with torch.no_grad():
            return dict(zip([item.name for item in self.items], self._values(), strict=True))

    @torch.no_grad()
    def add_gradient_(self) -> None:
        """Add the gradient of :meth:`__call__` to each parameter's ``.grad``, which is created where it is None.

        Parameters that were frozen meanwhile are left alone. RuntimeError for a sparse ``.grad``.
        """
        self._begin_adding("add_gradient_()")
        found, scale = self._receiving(), self._scale
        if torch.compiler.is_compiling() or self._add is not add_gradient_:
            for k, item, parameter in found:
                self._add(*self._term(k, item, parameter), scale.to(parameter.device), self.attached)
            return
        terms = (self._term(*one) for one in found)
        if self._fused:
            fused.in_parallel(jobs_of(terms, scale, self.attached))
        else:
            add_gradients_(terms, scale, self.attached)

    def _receiving(self) -> list[tuple[int, Quantized, nn.Parameter]]:
        """The tensors that are trained, each with a gradient to add to, and their numbers."""
        found = [(k, item, item.parameter) for k, item in enumerate(self.items)]
        found = [one for one in found if one[2].requires_grad]
        for _, item, parameter in found:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            elif parameter.grad.layout != torch.strided:
                raise RuntimeError(
                    f"{item.name} has a sparse gradient, the penalty's is dense: make its embedding with sparse=False, "
                    "exclude it, or add penalty() to the loss"
                )
        return found

    def _term(self, k: int, item: Quantized, parameter: nn.Parameter) -> Term:
        """What :meth:`add_gradient_` works on in one tensor."""
        assert parameter.grad is not None, "of _receiving()"
        return Term(local(parameter.grad), item, local(parameter), self.curvature.values(k))

    def compile(self, **options: Any) -> None:
        """Have :meth:`add_gradient_` use generated code on an accelerator: one graph per shape, however many tensors.

        ``options``: of ``torch.compile``. Without effect on a CPU where numba's loops serve.
        """
        self._add = torch.compile(add_gradient_, dynamic=False, **options)

    @torch.no_grad()
    def apply_(self, optimizer: Optimizers) -> None:
        """Move the weights along the penalty's gradient beside ``optimizer``, one or several in a list, whose averages
        so see the loss alone. Parameters that were frozen meanwhile stay.

        The step is what the optimizer would do with this gradient but for momentum: ``lr / (√v̂ + ε)`` times it where
        it keeps ``exp_avg_sq`` (Adam), else ``lr`` times it. Call it just before ``optimizer.step()``; with curvature
        "adam" the first call, before there are averages, does nothing.
        """
        if self.kind == "adam" and not self.curvature.ready:
            return
        self._require_curvature()
        live = [(k, item) for k, item in enumerate(self.items) if item.trained]
        groups = trained_by(optimizer, [item for _, item in live])
        for (k, item), (owner, group) in zip(live, groups, strict=True):
            step = torch.zeros_like(item.local, dtype=item.working_type)
            add_gradient_(step, item, item.local, *self.terms(k))
            state = owner.state.get(item.parameter, {})
            if "exp_avg_sq" in state:
                left = (1 - group["betas"][1] ** steps_of(state, step.device)).to(step.dtype)
                step /= (local(state["exp_avg_sq"]).to(step.dtype) / left).sqrt_().add_(group["eps"])
            item.local.sub_((step * group["lr"]).to(item.local.dtype))

    def _values(self) -> list[Tensor]:
        self._require_curvature()
        values = [value(item, item.local, *self.terms(k)) for k, item in enumerate(self.items)]
        return [v.to(self.count.device) for v in values]

    def terms(self, k: int) -> tuple[Tensor, Tensor, bool]:
        """Curvature of item ``k``, the number to multiply it by, and whether the scale is attached."""
        return self.curvature.values(k), self._scale.to(self.items[k].parameter.device), self.attached

    @property
    def _scale(self) -> Tensor:
        """What every item's curvature is multiplied by, λ included."""
        return self.weight_now * self.curvature.factor().squeeze(0)

    @property
    def weight_now(self) -> Tensor:
        """λ at this step, ramp included: a 0-dimensional float64 tensor."""
        return self.weight * self.ramp.at(self.count)

    # --- curvature ---------------------------------------------------------------------------------------------------

    def observe(self, batch_size: int, scale: float = 1.0) -> None:
        """Take the loss gradient into the curvature; once per optimizer step, after the last backward pass.

        ``batch_size``: number of samples ``B`` in the mean behind ``.grad``, over all micro-batches and, for "fisher",
        all processes of a run; for "kfac", of one process. A sample is a term of the mean whose gradient is independent
        of the others' (for language models, tokens are customary). ``scale``: what the gradients are still multiplied
        by, e.g. the loss scale of AMP. Gradients with a value that is not finite, or whose square is not, are skipped
        as a whole and counted in :attr:`skipped`; until one was taken the curvature, and so the penalty, is zero.

        RuntimeError for a penalty whose curvature comes from elsewhere, and for "fisher" if the penalty's own gradient
        was already added in this step: fed back into the curvature, it would grow without bound.
        """
        batch_size, scale = self._checked(batch_size, scale, "observe")
        if isinstance(self.curvature, Kfac):
            self.curvature.observe(batch_size, scale)
        else:
            assert isinstance(self.curvature, Fisher), "_checked() lets no other source through"
            self.curvature.observe(self._gradients(), batch_size, scale)

    def observe_part(self, batch_size: int, total: int, scale: float = 1.0) -> None:
        """Call after the first backward pass of several that accumulate, for an exact empirical Fisher (``EF``).

        ``.grad`` then holds ``scale`` times the mean gradient over ``batch_size`` samples, where the whole step has
        ``total``: with each micro-batch's mean loss divided by their number K, ``scale`` is 1/K. :meth:`observe`
        follows at the end, with ``batch_size=total``; until then a copy of the gradients is held.
        """
        batch_size, scale = self._checked(batch_size, scale, "observe_part")
        if not isinstance(self.curvature, Fisher):
            raise RuntimeError(f"observe_part() is for curvature='fisher', this one is {self.kind!r}")
        self.curvature.part(self._gradients(), batch_size, total, scale)

    @property
    def skipped(self) -> int:
        """How many observations were left out since the values, or their squares, were not finite."""
        return int(self.curvature.skipped)

    def watch(self, model: nn.Module) -> list[torch.utils.hooks.RemovableHandle]:
        """For "kfac": record in the linear layers of ``model``; see :meth:`~lotion_theory.training.kfac.Kfac.watch`."""
        if not isinstance(self.curvature, Kfac):
            raise RuntimeError(f"watch() is for curvature='kfac', this one is {self.kind!r}")
        return self.curvature.watch(model)

    def set_curvature_(self, values: Mapping[str, Tensor]) -> None:
        """For "given": copy the curvature of each quantized tensor, by name; see :attr:`items` for the names."""
        if not isinstance(self.curvature, Given):
            raise RuntimeError(f"set_curvature_() is for curvature='given', this one is {self.kind!r}")
        self.curvature.set(values)

    def curvature_of(self, name: str) -> Tensor:
        """The curvature in use for a quantized tensor, of its local shape; ValueError for an unknown name."""
        names = [item.name for item in self.items]
        if name not in names:
            raise ValueError(f"{name!r} is not quantized; quantized: {', '.join(names)}")
        self._require_curvature()
        values = self.curvature.values(names.index(name))
        return values * self.curvature.factor().to(values.device, values.dtype)

    def _checked(self, batch_size: int, scale: float, what: str) -> tuple[int, float]:
        if self.kind not in ("fisher", "kfac"):
            raise RuntimeError(f"{what}() is for curvature 'fisher' or 'kfac', this one is {self.kind!r}")
        if not torch.compiler.is_compiling():
            self._optimizers.settle()
        self.check_place(what)
        if self.kind == "fisher" and self._added and not self._left_out():
            raise RuntimeError(
                f"{what}() comes before penalty() and add_gradient_(): .grad holds the penalty's own gradient by now. "
                "If the optimizer has stepped since, call step() once per optimizer step"
            )
        self._added = False
        return integer(batch_size, "batch_size"), number(scale, "scale", *SCALES)

    def _left_out(self) -> bool:
        """Whether the step that the penalty was added in was left out: its gradients overflowed, or are gone."""
        return bool(self.curvature.last_skipped) or self._optimizers.renewed(self.items[0].parameter.grad)

    def _gradients(self) -> list[Tensor | None]:
        return dense([item.parameter.grad for item in self.items])

    def _begin_adding(self, what: str) -> None:
        if self.kind == "adam":
            raise RuntimeError(
                f"{what} would enter the optimizer's averages, from which curvature='adam' comes, and grow without "
                "bound: use apply_(optimizer)"
            )
        self._require_curvature()
        self._added = True
        self._optimizers.mark(self.items[0].parameter.grad)

    def _require_curvature(self) -> None:
        if not self.curvature.ready:
            raise RuntimeError(f"there is no curvature yet: {FEEDS[self.kind]}")

    # --- steps and state ---------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Count an optimizer step: moves the ramp and lets :meth:`observe` look at the next gradient.

        RuntimeError while attached, where the optimizers' steps are counted by themselves.
        """
        if self._optimizers.optimizers:
            raise RuntimeError("attach() counts the optimizer's steps: do not call step() as well")
        self._count_step()

    def forget_step(self) -> None:
        """After a step that a gradient scaler left out, whose gradients are cleared: not counted."""
        self._added = False
        if isinstance(self.curvature, Fisher):
            self.curvature.forget_part()

    def _count_step(self) -> None:
        self.count.add_(1)
        self.forget_step()

    def attach(self, *optimizers: Optimizers) -> Detach:
        """Have a step counted with each ``optimizer.step()``; its ``remove()`` ends that.

        Give all optimizers of the model, at once or one by one: when each has stepped, that is one step. A step that a
        gradient scaler leaves out does not count. UserWarning naming the quantized parameters that none of them trains.
        """
        self._checked_optimizers = False
        return self._optimizers.add(optimizers)

    def _before_optimizer(self, optimizer: torch.optim.Optimizer, arguments: tuple, options: dict) -> None:
        if not self._checked_optimizers:
            self._checked_optimizers = True
            missing = self._optimizers.untrained(self.items)
            if missing:
                warnings.warn(f"no attached optimizer trains {', '.join(missing)}", stacklevel=4)

    def follow_(self, model: nn.Module) -> None:
        """Act on the parameters of the same names of ``model`` from here on, from the first step and without curvature
        (but for curvature that was given): for frameworks that make the model anew. ValueError if one is missing.
        """
        follow(self.items, model)
        self._source = model
        self.count.zero_()
        self._added = False
        if not isinstance(self.curvature, Given | Moments):
            self.curvature.clear_()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: the step and the curvature, tensors keyed by the names of parameters. Also the
        format, names and shapes, which must be those of the penalty that loads it."""
        self._optimizers.settle()
        curvature = pack(self.curvature.state(), [item.name for item in self.items])
        own = {"step": self.count, "ready": bool(self.curvature.ready), "kind": self.kind}
        return {**own, "curvature": curvature, **facts(self.items)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a :meth:`state_dict` of a penalty on the same parameters; ValueError naming what does not fit."""
        copy_state(self.state_dict(), state)
        if isinstance(self.curvature, Fisher):
            self.curvature.signed = any(bool((local(h) < 0).any()) for h in self.curvature.average)
        if not isinstance(self.curvature, Moments):
            self.curvature.ready = bool(state["ready"])
        self._added, self.curvature.last_skipped = False, False
