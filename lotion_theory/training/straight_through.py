"""Straight-through training from outside: the loss sees quantized weights, the optimizer the weights themselves."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..formats.quantizer import Quantizer
from ..methods.rule import LEAST_LEFT
from ..streams import Stream
from ._model.attached import Attached, Detach
from ._model.state import copy_state, facts
from ._model.swap import Swap
from ._site import Now, Site, fill_, nearest
from .curvature import Given, Optimizers, several, trained_by
from .rules import ALIASES, METHODS, TensorRule, rule_of
from .schedules import Gate, Moment, positive_steps
from .selection import Quantized, follow, is_sharded, local, select


class StraightThrough:
    """Trains with quantized weights in the forward and backward pass; model and optimizer stay as they are.

    >>> st = StraightThrough(model, "int4/absmax/block=32", method="qat")
    >>> st.attach(optimizer)
    >>> with st:  # the parameters hold quantized values in here
    ...     criterion(model(x), y).backward()
    >>> optimizer.step(), optimizer.zero_grad()

    Inside ``with st:`` the parameters' own memory holds the values that the method evaluates the loss at; afterwards
    the weights are back, bit for bit. So names, checkpoints, compiled graphs, activation checkpointing, tied weights,
    DDP and FSDP2 see nothing unusual, and the weights are rounded once however many micro-batches accumulate in the
    block. What a method does to the gradients is done by :meth:`before_step_`, once per optimizer step; it is linear in
    the loss gradient, so it commutes with accumulation and with averaging over processes. The order is: backward
    passes, unscale (AMP), :meth:`before_step_`, clip, optimizer step, :meth:`step`. :meth:`attach` calls the first and
    the last of those, and then gradients are clipped before the correction, which matters for "quest", "lsq", coupled
    "cage" and "crown_q". One copy of the quantized weights is held inside the block. Of a model that was given as
    a module, ``state_dict()`` has the weights there too, and a copy or pickle of the whole is refused.

    Args:
        named_parameters, format, include, exclude: see :func:`~lotion_theory.training.select`.
        method: a name of :data:`~lotion_theory.training.METHODS`; see :mod:`lotion_theory.methods`. Formats other than
            absmax scales on levels from -c to c: those with ``any_format``.
        start, stop: when the method is on; steps (int) or shares of ``total_steps`` (float). Before and after, the loss
            sees the weights themselves. The learned levels of "lsq" and "pact" start from the weights at
            ``start``.
        seed: of the noise of "rr_ste", "diffq" and "quant_noise", a function of it, the name, the step and the number
            of the weight: the same on every replica and for any sharding.
        curvature: tensors by name, for "crown_q" with ``variant="true"``.
        settings: of the method.

    Raises ValueError for what is not valid.
    """

    def __init__(
        self,
        named_parameters: nn.Module | Iterable[tuple[str, nn.Parameter]],
        format: str | Quantizer,
        method: str = "qat",
        start: Moment = 0,
        stop: Moment | None = None,
        total_steps: int | None = None,
        seed: int = 0,
        include: tuple[str, ...] | list[str] = (),
        exclude: tuple[str, ...] | list[str] = (),
        curvature: Mapping[str, Tensor] | None = None,
        **settings: Any,
    ) -> None:
        self.items: list[Quantized] = select(named_parameters, format, include, exclude)
        self.method = ALIASES.get(method, method)
        quantizer = self.items[0].quantizer
        self.rule: TensorRule = rule_of(method, settings, quantizer.codebook, positive_steps(total_steps))
        self._check(quantizer)
        device = self.items[0].parameter.device
        self.gate = Gate(start, stop, total_steps, device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self._step = 0
        # Numbers of the sites whose gradients were corrected in this step.
        self._corrected: set[int] = set()
        self._optimizers, self._checked_optimizers = Attached(self), False
        self._swap = Swap(self.items, keeps=True)
        given = self._given(curvature)
        self.sites = [
            Site(item, self.rule, Stream(seed, f"straight-through/{item.name}"), h)
            for item, h in zip(self.items, given, strict=True)
        ]

    def _given(self, curvature: Mapping[str, Tensor] | None) -> list[Tensor] | list[None]:
        if self.rule.curvature and curvature is not None:
            given = Given(self.items)
            given.set(curvature)
            return [given.values(k) for k in range(len(self.items))]
        if self.rule.curvature or curvature is not None:
            need = "needs" if self.rule.curvature else "uses no"
            raise ValueError(f"method {self.method} with these settings {need} curvature, tensors by name")
        return [None] * len(self.items)

    def _check(self, quantizer: Quantizer) -> None:
        general = any(item.levels is None for item in self.items)
        if general and (not METHODS[self.method].any_format or self.rule.anchor is not None):
            raise ValueError(
                f"method {self.method} with these settings needs an absmax scale and levels from -c to c, as int4, "
                f"e2m1 and nf4 have; format {quantizer} can be trained by "
                + ", ".join(name for name, method in METHODS.items() if method.any_format)
            )
        if self.rule.top == "learned" and any(is_sharded(item.parameter) for item in self.items):
            raise ValueError(
                f"{self.method} learns a number per block, which sharded parameters have no place for; use DDP"
            )

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code cannot be pickled.
        return {name: value for name, value in self.__dict__.items() if name != "write_"}

    # --- the quantized weights ---------------------------------------------------------------------------------------

    def __enter__(self) -> StraightThrough:
        self._optimizers.settle()
        if self._corrected and all(_forgotten(site.item.parameter.grad) for site in self.sites):
            # The step that these gradients were for was left out, by a gradient scaler.
            self._corrected.clear()
        if self.gate.on:
            self._swap.enter(self.write_)
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self._swap.entered:
            self._swap.leave(check=kind is None)

    @property
    def active(self) -> bool:
        """Whether the method is on at this step."""
        return self.gate.on

    @torch.no_grad()
    def write_(self, originals: list[Tensor]) -> None:
        """Overwrite the parameters with what the loss is evaluated at, given copies of the weights in order of
        :attr:`items`.

        ``with st:`` does this where the gate is open. ``st.write_ = torch.compile(st.write_)`` fuses it; compiled code
        reads the gate and the step as tensors.
        """
        fill_(self.sites, [item.local for item in self.items], originals, self.gate, self._now())

    def _now(self) -> Now:
        return Now(self.rule.parameters(self.count), self.count, self._step)

    def compile(self, **options: Any) -> None:
        """Have methods that round to nearest levels do it by generated code: one graph per shape, however many tensors.

        ``options``: of ``torch.compile``. Other methods: ``st.write_ = torch.compile(st.write_)``.
        """
        shared = torch.compile(nearest, dynamic=False, **options)
        for site in self.sites:
            site.nearest = shared

    @torch.no_grad()
    def points(self) -> dict[str, Tensor]:
        """What the loss is evaluated at in this step, by name (local shards); the parameters stay as they are."""
        weights = [item.local for item in self.items]
        out = {item.name: torch.empty_like(w) for item, w in zip(self.items, weights, strict=True)}
        fill_(self.sites, list(out.values()), weights, self.gate, self._now())
        return out

    def quantizer(self, name: str, weights: Tensor | None = None) -> Quantizer:
        """The grid that the tensor ``name`` is trained on and to be deployed on, at given ``weights`` or its own.

        That of the format, except for "lsq" (a learned step per block) and "quest" (its range is a multiple of the
        root mean square): those are frozen as they are at the weights. Both clip, so randomized rounding on them is
        biased beyond the range. ValueError for an unknown name.
        """
        for site in self.sites:
            if site.item.name == name:
                return site.quantizer((site.item.local if weights is None else weights).detach())
        raise ValueError(f"{name!r} is not trained here; valid: {', '.join(site.item.name for site in self.sites)}")

    @torch.no_grad()
    def clipped(self) -> float:
        """Share of the weights held by this process that lie beyond the range of their grid; 0 on absmax scales."""
        beyond = sum(site.beyond() for site in self.sites)
        return beyond / max(1, sum(site.item.local.numel() for site in self.sites))

    # --- around the optimizer's step ---------------------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        """Parameters of the method's own, for the optimizer: what "lsq" and "pact" learn per block (for "lsq" ``√Q_P``
        steps, which Adam moves at the pace of the weights), else none.

        Give them a group without weight decay: ``optimizer.add_param_group({"params": st.parameters(), "weight_decay":
        0.0})``.
        """
        return [site.learned for site in self.sites if site.learned is not None]

    @torch.no_grad()
    def before_step_(self, optimizer: Optimizers | None = None) -> None:
        """Correct the gradients as the method asks; once per optimizer step, outside of ``with st:``.

        ``optimizer``: for decoupled "cage", whose pull is taken off the weights here, times each group's learning rate;
        one, or several in a list. RuntimeError inside the block, when called twice in a step, where "cage" lacks the
        optimizer, and for a sparse gradient of a method that changes gradients.
        """
        self._optimizers.settle()
        if self._corrected:
            raise RuntimeError("the gradients of this step are corrected already: call step() once per optimizer step")
        if optimizer is not None and self.gate.on and self._lacks(several(optimizer)):
            raise RuntimeError("the optimizer lacks the learned steps: optimizer.add_param_group(...st.parameters())")
        self._correct(range(len(self.sites)), optimizer)

    def _correct(self, numbers: Iterable[int], optimizer: Optimizers | None) -> None:
        """Correct the gradients of these sites."""
        if self._swap.entered:
            raise RuntimeError("before_step_() comes after the block: the parameters still hold quantized values")
        chosen = [k for k in numbers if k not in self._corrected]
        live = [self.sites[k] for k in chosen if self.sites[k].item.trained]
        rates: list[float | Tensor | None] = [None] * len(live)
        if self.gate.on and self.rule.pull is not None:
            if optimizer is None:
                raise RuntimeError("decoupled 'cage' pulls at each group's learning rate: give the optimizer")
            rates = [group["lr"] for _, group in trained_by(optimizer, [site.item for site in live])]
        self._corrected.update(chosen)
        if not self.gate.on or not self.rule.corrects:
            return
        now = self._now()
        for site, rate in zip(live, rates, strict=True):
            site.correct_(now, rate)
            site.floor = None if site.learned is None else site.learned.detach() * LEAST_LEFT

    def _lacks(self, optimizers: list[torch.optim.Optimizer]) -> bool:
        """Whether ``optimizers`` lack one of :meth:`parameters`."""
        if self.rule.learned is None:
            return False
        known = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
        return any(id(p) not in known for p in self.parameters())

    def step(self) -> None:
        """Count an optimizer step: new noise, and the gate as it is next.

        RuntimeError while attached, where the optimizers' steps are counted by themselves.
        """
        if self._optimizers.optimizers:
            raise RuntimeError("attach() counts the optimizer's steps: do not call step() as well")
        self._count_step()

    def forget_step(self) -> None:
        """After a step that a gradient scaler left out, whose gradients are cleared: not counted."""
        self._corrected.clear()

    @torch.no_grad()
    def _count_step(self) -> None:
        for site in self.sites:
            if site.learned is not None and site.floor is not None:
                # A step stays positive: one update takes at most this much of it away.
                torch.maximum(site.learned, site.floor, out=site.learned)
                site.floor = None
        if self.gate.on and self.rule.rule.reset is not None:
            now = self._now()
            for site in self.sites:
                site.reset_(now)
        self._step += 1
        if self._step <= math.ceil(self.gate.start):
            # Up to the start the steps follow the weights.
            for site in self.sites:
                site.restart_()
        self.count.fill_(self._step)
        self.gate.update(self._step)
        self._corrected.clear()

    def attach(self, *optimizers: Optimizers) -> Detach:
        """Have :meth:`before_step_` (unless called by hand) and :meth:`step` run with each ``optimizer.step()``; the
        result's ``remove()`` ends that.

        Give all optimizers of the model, at once or one by one: each gradient is corrected before the optimizer of its
        parameter steps, and when each optimizer has stepped, that is one step. A step that a gradient scaler leaves out
        does not count. At a step, RuntimeError where a closure is given, since the gradients come after the hook then,
        where no attached optimizer has a parameter whose gradient is to be corrected, and where gradients are scaled
        that must not be.
        """
        self._checked_optimizers = False
        return self._optimizers.add(optimizers)

    @torch.no_grad()
    def _before_optimizer(self, optimizer: torch.optim.Optimizer, arguments: tuple, options: dict) -> None:
        if any(callable(argument) for argument in (*arguments[1:], *options.values())):
            raise RuntimeError("optimizer.step(closure) computes gradients too late for attach(): call the parts")
        if not self._checked_optimizers:
            self._check_optimizers()
            self._checked_optimizers = True
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        mine = [k for k, site in enumerate(self.sites) if known & {id(site.item.parameter), id(site.learned)}]
        due = [k for k in mine if k not in self._corrected]
        if due and self.gate.on and not self.rule.linear and getattr(optimizer, "grad_scale", None) is not None:
            raise RuntimeError(
                f"the gradients are still scaled, and {self.method} adds to them: call scaler.unscale_(optimizer) first"
            )
        self._correct(due, self._optimizers.optimizers)

    def _check_optimizers(self) -> None:
        """Whether the attached optimizers train everything."""
        missing = self._optimizers.untrained(self.items)
        if missing and self.rule.corrects:
            raise RuntimeError(
                f"no attached optimizer trains {', '.join(missing)}: attach all, or call before_step_() and step()"
            )
        if missing:
            warnings.warn(f"no attached optimizer trains {', '.join(missing)}", stacklevel=5)
        if self._lacks(self._optimizers.optimizers):
            raise RuntimeError("the optimizer lacks the learned steps: optimizer.add_param_group(...st.parameters())")

    @torch.no_grad()
    def follow_(self, model: nn.Module) -> None:
        """Act on the parameters of the same names of ``model`` from here on, from the first step: for frameworks that
        make the model anew. ValueError if one is missing; RuntimeError while weights are replaced."""
        if self._swap.entered:
            raise RuntimeError("the weights are replaced: leave that block first")
        follow(self.items, model)
        self._step = 0
        self.count.zero_()
        self.gate.update(0)
        self._corrected.clear()
        for site in self.sites:
            site.restart_()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: the step, and the learned parameters by name. Also method, format, names, shapes
        and the highest level over what is learned, which must be those of the trainer that loads it."""
        self._optimizers.settle()
        own = [site for site in self.sites if site.learned is not None]
        learned = {site.item.name: site.learned.detach() for site in own if site.learned is not None}
        units = {"units": [site.span for site in own]} if own else {}
        return {"method": self.method, "step": self.count, "learned": learned, **facts(self.items), **units}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a :meth:`state_dict` of the same method on the same parameters; ValueError naming what does not fit."""
        copy_state(self.state_dict(), state)
        self._step = int(self.count)
        self.gate.update(self._step)
        self._corrected.clear()


def _forgotten(gradient: Tensor | None) -> bool:
    """Whether a gradient was cleared since it was used."""
    if gradient is None:
        return True
    values = local(gradient)
    return not bool((values.coalesce().values() if values.is_sparse else values).any())
