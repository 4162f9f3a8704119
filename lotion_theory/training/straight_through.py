"""Straight-through training from outside: the loss sees quantized weights, the optimizer the weights themselves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..methods.rule import LEAST_LEFT
from ..quantizer import Quantizer
from ..streams import Stream
from ._site import Site, nearest
from ._state import copy_state
from .curvature import Given, groups_of
from .rules import ALIASES, METHODS, TensorRule, rule_of
from .schedules import Gate, Moment, positive_steps
from .selection import Quantized, is_sharded, select
from .swap import Swap


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
    "cage" and "crown_q". One copy of the quantized weights is held inside the block.

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
        self._corrected = False
        self._swap = Swap(self.items)
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

    # --- the quantized weights ---------------------------------------------------------------------------------------

    def __enter__(self) -> StraightThrough:
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
        a = self.rule.parameters(self.count)
        for site, weights in zip(self.sites, originals, strict=True):
            site.fill_(site.item.local, weights, self.gate, a, self.count, self._step)

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
        a = self.rule.parameters(self.count)
        out = {}
        for site in self.sites:
            out[site.item.name] = torch.empty_like(site.item.local)
            site.fill_(out[site.item.name], site.item.local, self.gate, a, self.count, self._step)
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
        """Parameters of the method's own, for the optimizer: the learned steps of "lsq", else none.

        Give them a group without weight decay: ``optimizer.add_param_group({"params": st.parameters(), "weight_decay":
        0.0})``.
        """
        return [site.learned for site in self.sites if site.learned is not None]

    @torch.no_grad()
    def before_step_(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Correct the gradients as the method asks; once per optimizer step, outside of ``with st:``.

        ``optimizer``: for decoupled "cage", whose pull is taken off the weights here, times each group's learning rate.
        RuntimeError inside the block, when called twice in a step, and where "cage" lacks the optimizer.
        """
        if self._swap.entered:
            raise RuntimeError("before_step_() comes after the block: the parameters still hold quantized values")
        if self._corrected:
            raise RuntimeError("the gradients of this step are corrected already: call step() once per optimizer step")
        self._corrected = True
        if not self.gate.on:
            return
        rates: list[float | Tensor | None] = [None] * len(self.sites)
        if self.rule.pull is not None:
            if optimizer is None:
                raise RuntimeError("decoupled 'cage' pulls at each group's learning rate: give the optimizer")
            rates = [group["lr"] for group in groups_of(optimizer, self.items)]
        if self._lacks(optimizer):
            raise RuntimeError("the optimizer lacks the learned steps: optimizer.add_param_group(...st.parameters())")
        a = self.rule.parameters(self.count)
        for site, rate in zip(self.sites, rates, strict=True):
            site.correct_(a, self.count, self._step, rate)
            site.floor = None if site.learned is None else site.learned.detach() * LEAST_LEFT

    def _lacks(self, optimizer: torch.optim.Optimizer | None) -> bool:
        """Whether ``optimizer`` lacks one of :meth:`parameters`; False without an optimizer."""
        if optimizer is None:
            return False
        known = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return any(id(p) not in known for p in self.parameters())

    @torch.no_grad()
    def step(self) -> None:
        """Count an optimizer step: new noise, and the gate as it is next."""
        for site in self.sites:
            if site.learned is not None and site.floor is not None:
                # A step stays positive: one update takes at most this much of it away.
                torch.maximum(site.learned, site.floor, out=site.learned)
                site.floor = None
        self._step += 1
        if self._step <= math.ceil(self.gate.start):
            # Up to the start the steps follow the weights.
            for site in self.sites:
                site.restart_()
        self.count.fill_(self._step)
        self.gate.update(self._step)
        self._corrected = False

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Have :meth:`before_step_` (unless called by hand) and :meth:`step` run with each ``optimizer.step()``.

        RuntimeError at a step that is given a closure, since the gradients come after the hook then.
        """

        def before(_: Any, args: tuple, kwargs: dict) -> None:
            if any(callable(argument) for argument in (*args[1:], *kwargs.values())):
                raise RuntimeError("optimizer.step(closure) computes gradients too late for attach(): call the parts")
            if not self._corrected:
                self.before_step_(optimizer)

        optimizer.register_step_pre_hook(before)
        optimizer.register_step_post_hook(lambda *_: self.step())

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume: the step, and the learned steps by name."""
        learned = {site.item.name: site.learned.detach() for site in self.sites if site.learned is not None}
        return {"method": self.method, "step": self.count, "learned": learned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy a :meth:`state_dict` of the same method on the same parameters; ValueError naming what does not fit."""
        copy_state(self.state_dict(), state)
        self._step = int(self.count)
        self.gate.update(self._step)
        self._corrected = False
