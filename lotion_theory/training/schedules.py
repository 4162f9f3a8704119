"""When quantization acts: ramps and gates as tensors, and the split of training into a float and a quantized phase.

A ``bool`` or ``float`` attribute that a compiled graph reads is a constant of that graph: switched later, it does
nothing or compiles anew. Steps, weights and gates are therefore tensors, moved between graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..arguments import integer, number

Moment = int | float
"""A moment of training: an ``int`` is a step, a ``float`` in [0, 1] a share of all steps."""


def as_step(moment: Moment, total_steps: int | None, name: str) -> float:
    """``moment`` in steps. ValueError for a share where ``total_steps`` is None, and outside of training."""
    plain = _moment(moment)
    if plain is None:
        raise ValueError(f"{name} = {moment!r}; valid: a step (int) or a share of training (float in [0, 1])")
    moment = plain
    if isinstance(moment, int):
        if moment < 0:
            raise ValueError(f"{name} = {moment}; a step is not negative")
        return float(moment)
    if not 0 <= moment <= 1:
        raise ValueError(f"{name} = {moment}; a share of training lies in [0, 1] (a step is an int)")
    if moment == 0:
        return 0.0
    if total_steps is None:
        raise ValueError(f"{name} = {moment} is a share of training: give total_steps, or a step (int)")
    moment = float(moment)
    step = round(moment * total_steps)
    # A share that is a step's, as step / total_steps is computed, is that step: 0.55 of 100 is 55, and not an ulp more.
    return float(step) if step / total_steps == moment else moment * total_steps


def _moment(moment: Any) -> int | float | None:
    """``moment`` as an int or float of Python's own; None for what is neither."""
    plain = moment.item() if getattr(moment, "ndim", None) == 0 else moment
    return None if isinstance(plain, bool) or not isinstance(plain, int | float) else plain


def positive_steps(total_steps: int | None) -> int | None:
    """``total_steps``, a positive integer or None; ValueError otherwise."""
    return None if total_steps is None else integer(total_steps, "total_steps")


class Ramp:
    """A factor that is 0 up to ``start``, grows linearly, and is 1 from ``end`` on; ``start == end`` makes a step.

    Raises ValueError where ``end`` comes before ``start``, and as :func:`as_step`.
    """

    def __init__(self, start: Moment = 0, end: Moment = 0, total_steps: int | None = None) -> None:
        total = positive_steps(total_steps)
        self.start, self.end = as_step(start, total, "start"), as_step(end, total, "end")
        if self.end < self.start:
            raise ValueError(f"a ramp from {start} to {end} ends before it starts")

    def at(self, step: Tensor) -> Tensor:
        """The factor at ``step``, a 0-dimensional tensor, as float64."""
        step = step.to(torch.float64)
        if self.end == self.start:
            return (step >= self.start).to(torch.float64)
        return ((step - self.start) / (self.end - self.start)).clamp(0, 1)


class Gate:
    """On from ``start`` up to before ``end`` (None: for ever). ``tensor`` is a 0-dimensional bool on ``device``.

    Compiled code reads ``tensor``, which :meth:`update` fills; eager code may read :attr:`on`, a Python bool that
    spares the work where the gate is closed.
    """

    def __init__(
        self,
        start: Moment = 0,
        end: Moment | None = None,
        total_steps: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        total = positive_steps(total_steps)
        self.start = as_step(start, total, "start")
        self.end = math.inf if end is None else as_step(end, total, "end")
        self.tensor = torch.zeros((), dtype=torch.bool, device=device)
        self.on = False
        self.update(0)

    def update(self, step: int) -> None:
        """Set the gate as it is at ``step``."""
        self.set(self.start <= step < self.end)

    def set(self, on: bool) -> None:
        """Open or close the gate by hand, until the next :meth:`update`."""
        self.on = bool(on)
        self.tensor.fill_(self.on)


DECAYS: dict[str, Callable[[float], float]] = {
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "linear": lambda share: 1 - share,
}


def optimal_share(tokens: float, parameters: float, bits: float, a: float = 6.7297) -> float:
    """Share of training that is best spent quantized: ``exp(-a / ln S)`` with ``S = tokens / (parameters bits / 8)``.

    The one-parameter rule of compute-optimal QAT (Dremov et al., arXiv 2509.22935), fitted there to models of 86M to
    2.2B parameters with a mean error of 0.09; ``S`` is in tokens per byte of quantized parameters. Raises ValueError
    for values that are not positive and for ``S <= 1``.
    """
    for name, value in (("tokens", tokens), ("parameters", parameters), ("bits", bits), ("a", a)):
        number(value, name, 0.0, open_below=True)
    ratio = tokens / (parameters * bits / 8)
    if ratio <= 1:
        raise ValueError(f"{ratio:g} tokens per byte of parameters; the rule is for more than 1")
    return math.exp(-a / math.log(ratio))


@dataclass(frozen=True)
class Split:
    """Training in floating point, then quantized, with the learning rate of both phases (arXiv 2509.22935).

    ``share``: of ``total_steps`` that are quantized, the last ones. ``fused`` (cooldown fusion): warm-up and constant
    rate in floating point, quantization switched on at peak rate, and one decay to ``floor`` over the quantized phase.
    Otherwise the float phase decays over its last ``cooldown`` (share of the phase) to ``floor``, and the quantized
    phase warms up again over ``rewarm`` steps and decays. ``warmup``: steps of linear growth at the start. ``decay``:
    "cosine" or "linear". ``keep_state``: whether the optimizer's moments carry over into the quantized phase.

    >>> plan = Split(total_steps=1000, share=0.2, warmup=50)
    >>> scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, plan.factor)
    >>> st = StraightThrough(model, "int4/absmax/block=32", start=plan.start)   # or LotionPenalty(..., ramp=plan.ramp)
    """

    total_steps: int
    share: float
    fused: bool = True
    warmup: int = 0
    decay: str = "cosine"
    floor: float = 0.0
    cooldown: float = 0.2
    rewarm: int = 0
    keep_state: bool = True

    def __post_init__(self) -> None:
        for name, lowest in (("total_steps", 1), ("warmup", 0), ("rewarm", 0)):
            integer(getattr(self, name), name, lowest)
        for name in ("share", "floor", "cooldown"):
            number(getattr(self, name), name, 0.0, 1.0)
        if self.decay not in DECAYS:
            raise ValueError(f"decay = {self.decay!r}; valid: {', '.join(DECAYS)}")
        if self.start and self.warmup > self.start:
            raise ValueError(f"warmup = {self.warmup}; must lie within the float phase of {self.start} steps")
        if self.rewarm > self.total_steps - self.start:
            raise ValueError(f"rewarm = {self.rewarm}; must lie within the quantized phase")

    @property
    def start(self) -> int:
        """The first quantized step."""
        return self.total_steps - round(self.share * self.total_steps)

    @property
    def ramp(self) -> tuple[int, int]:
        """The ``ramp`` of a penalty that is on in the quantized phase."""
        return self.start, self.start

    def active(self, step: int) -> bool:
        """Whether ``step`` is quantized."""
        return step >= self.start

    def factor(self, step: int) -> float:
        """The learning rate of ``step`` over the peak rate."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        begin = self.start
        if step >= begin:
            if not self.fused and step - begin < self.rewarm:
                return (step - begin + 1) / self.rewarm
            first = begin + (0 if self.fused else self.rewarm)
            # A phase that is quantized from the start on warms up first.
            return self._decayed(step, max(first, self.warmup), self.total_steps)
        first = begin - round(self.cooldown * begin)
        return 1.0 if self.fused or step < first else self._decayed(step, first, begin)

    def _decayed(self, step: int, first: int, end: int) -> float:
        share = min((step - first) / (end - first), 1.0) if end > first else 1.0
        return self.floor + (1 - self.floor) * DECAYS[self.decay](share)

    def begin_step(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Call at the start of each step: forgets the optimizer's moments at the switch, unless they carry over."""
        if step == self.start and not self.keep_state:
            optimizer.state.clear()
