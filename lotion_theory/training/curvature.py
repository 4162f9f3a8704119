"""Where a penalty's curvature comes from: moving averages of squared loss gradients, an optimizer, or given values.

Each source estimates the diagonal of the Gauss-Newton matrix of the *mean* loss, or a proxy of it. For a batch of ``B``
samples with mean gradient ``g``, ``E[g²] = EF/B + (1 - 1/B) ḡ²``: ``EF`` is the empirical Fisher (the squared gradient
of a sample, averaged over samples), ``ḡ`` the gradient over all data (claim C20).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import number
from ._model.distributed import all_processes
from ._model.held import is_sharded, local
from .selection import Quantized

MEANS = ("neglected", "tracked")
SCALES = (2.0**-126, 2.0**127)
"""Powers of two between which a loss scale lies: those that float32 holds in full precision."""

Observation = tuple[list[Tensor | None], float, float]
"""Gradients, one per item, the weight of their squares, and what they are multiplied by."""

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
"""One optimizer, or several that train different parameters of a model."""


class Curvature:
    """Base. ``values(k)``: the curvature of item ``k`` but for the common ``factor()``, in the item's local shape and
    working type: ``estimate(k)``, negative values, which an estimate free of bias may have, being taken as zero where
    ``signed``. ``ready``: whether there is any yet. Buffers are like the parameters, sharded where these are.
    ``skipped``: how many observations were left out; those alone leave the curvature at zero."""

    ready = False
    signed = False
    left: Tensor

    def __init__(self, items: list[Quantized]) -> None:
        self.items = items
        self.device = items[0].parameter.device
        self.skipped = self._number(0.0)
        self.last_skipped: bool | Tensor = False

    def estimate(self, k: int) -> Tensor:
        raise NotImplementedError

    def values(self, k: int) -> Tensor:
        found = self.estimate(k)
        return found.clamp(min=0) if self.signed else found

    def factor(self) -> Tensor:
        return self._number(1.0)

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        """The tensors to store: a list with one per item, or one for all."""
        return {}

    @torch.no_grad()
    def clear_(self) -> None:
        """Forget what was observed."""
        for value in self.state().values():
            for tensor in value if isinstance(value, list) else [value]:
                tensor.zero_()
        self.left.fill_(1.0)
        self.ready = self.last_skipped = False

    def count_skipped(self, usable: bool | Tensor) -> None:
        """Count an observation that was left out unless it was ``usable``."""
        self.last_skipped = ~usable if isinstance(usable, Tensor) else not usable
        self.skipped.add_(self.last_skipped)

    def _buffers(self) -> list[Tensor]:
        return [torch.zeros_like(item.parameter, dtype=item.working_type, requires_grad=False) for item in self.items]

    def _number(self, value: float) -> Tensor:
        # One entry rather than no dimensions: torch.compile (2.13) loses changes of float64 tensors without any.
        return torch.full((1,), value, dtype=torch.float64, device=self.device)


class Given(Curvature):
    """Values set from outside, for good or until set again."""

    def __init__(self, items: list[Quantized]) -> None:
        super().__init__(items)
        self.given = self._buffers()

    def estimate(self, k: int) -> Tensor:
        return local(self.given[k])

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        return {"given": self.given}

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Copy the tensor of each item's name; ValueError, before any is copied, for names or shapes that
        differ, and for values that are negative or not finite."""
        names = [item.name for item in self.items]
        for name in values:
            if name not in names:
                raise ValueError(f"curvature given for {name!r}, which is not quantized; quantized: {', '.join(names)}")
        found = []
        for item, own in zip(self.items, self.given, strict=True):
            if item.name not in values:
                raise ValueError(f"no curvature given for {item.name}")
            value = values[item.name]
            if not isinstance(value, Tensor):
                value = torch.as_tensor(value, device=own.device)
            if value.shape != own.shape:
                raise ValueError(
                    f"curvature of {item.name} has shape {tuple(value.shape)}, expected {tuple(own.shape)}"
                )
            part = local(value.detach())
            if not bool(((part >= 0) & part.isfinite()).all()):
                raise ValueError(f"curvature of {item.name} holds negative values, NaN or infinities")
            found.append(value.detach())
        for own, value in zip(self.given, found, strict=True):
            own.copy_(value)
        self.ready = True


def checked_decay(decay: float) -> float:
    """``decay``, in [0, 1); ValueError otherwise."""
    if not 0 <= number(decay, "decay") < 1:
        raise ValueError(f"decay = {decay!r}; must lie in [0, 1)")
    return float(decay)


def taken(left: Tensor) -> Tensor:
    """``1 - βⁿ`` for ``left = βⁿ``, what a moving average from zero is divided by; 1 before the first update, while the
    average is zero."""
    return torch.where(left < 1, 1 - left, torch.ones_like(left))


class Average(Curvature):
    """A moving average from zero, ``h ← β h + (1 - β) x``, divided at use by ``1 - βⁿ`` after ``n`` updates."""

    def __init__(self, items: list[Quantized], decay: float) -> None:
        super().__init__(items)
        self.decay = checked_decay(decay)
        self.average = self._buffers()
        # βⁿ as a tensor: where updates are skipped on a device, the host does not know n.
        self.left = self._number(1.0)

    def estimate(self, k: int) -> Tensor:
        return local(self.average[k])

    def factor(self) -> Tensor:
        return 1 / taken(self.left)

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        return {"average": self.average, "left": self.left, "skipped": self.skipped}

    def squares(
        self, gradients: list[Tensor | None], weight: float, scale: float = 1.0, beside: Observation | None = None
    ) -> bool | Tensor:
        """Take ``weight (g/scale)²`` into the average; whether it was taken. A missing gradient counts as zero.
        Gradients with a value that is not finite, or whose square is not, are left out as a whole, as a gradient scaler
        leaves out the optimizer's step; so are they where others ``beside`` them are such."""
        finite = self._usable([(gradients, weight, scale), *([] if beside is None else [beside])])
        blend(self.average, gradients, self.decay, (1 - self.decay) * weight, finite, scale, square=True)
        blend([self.left], [None], self.decay, 0.0, finite)
        self.ready = True
        return finite

    def _usable(self, observations: list[Observation]) -> bool | Tensor:
        """Whether squares of all these gradients fit into the average, which counts those that do not."""
        tops = [torch.finfo(item.working_type).max for item in self.items]
        finite: bool | Tensor = True
        for gradients, weight, scale in observations:
            finite = squares_fit(gradients, weight, scale, tops) & finite
        if any(is_sharded(buffer) for buffer in self.average):
            finite = all_processes(finite, self.device)
        self.count_skipped(finite)
        return finite


class Estimates(Average):
    """A moving average of estimates of the diagonal itself, which may be negative."""

    signed = True

    @torch.no_grad()
    def take(self, estimates: list[Tensor | None]) -> None:
        """Take estimates, one per item and of its local shape, into the average; a missing one counts as zero. All are
        left out where one holds a value that is not finite."""
        present = [x.isfinite().all().to(self.device) for x in estimates if x is not None]
        finite: bool | Tensor = torch.stack(present).all() if present else True
        if self.device.type == "cpu":
            finite = bool(finite)
        self.count_skipped(finite)
        blend(self.average, estimates, self.decay, 1 - self.decay, finite)
        blend([self.left], [None], self.decay, 0.0, finite)
        self.ready = True


class Fisher(Average):
    """Empirical Fisher from the loss gradients of batches.

    ``mean``: "neglected" averages ``B g²``, whose expectation is ``EF + (B - 1) ḡ²``: near a stationary point, and for
    small batches, the second term is small. "tracked" keeps a moving average ``m`` of ``g`` too, in a second buffer.
    With ``ρ`` the sum of that average's squared weights, ``E[v - m²] = (1 - ρ) (EF - ḡ²) / B`` and
    ``E[m²] = ḡ² + ρ (EF - ḡ²) / B``; hence ``EF = m² + (v - m²) (B - ρ) / (1 - ρ)``, exact while the weights stand
    still and never negative. Where gradients are accumulated, :meth:`part` makes either exact within one buffer.
    """

    def __init__(self, items: list[Quantized], decay: float, mean: str) -> None:
        super().__init__(items, decay)
        if mean not in MEANS:
            raise ValueError(f"mean = {mean!r}; valid: {', '.join(MEANS)}")
        self.means = self._buffers() if mean == "tracked" else None
        self.per_sample = self._number(0.0)  # moving average of 1/B
        self._part: Observation | None = None

    def state(self) -> dict[str, list[Tensor] | Tensor]:
        if self.means is None:
            return super().state()
        return {**super().state(), "means": self.means, "per_sample": self.per_sample}

    @torch.no_grad()
    def part(self, gradients: list[Tensor | None], batch_size: int, total: int, scale: float) -> None:
        """The gradients after the first micro-batch of an accumulation, of ``batch_size`` samples out of ``total``.

        Its mean gradient ``a`` and the final one ``g`` give two equations in ``EF`` and ``ḡ²``, hence
        ``EF = E[α a² + (1 - α) g²]``, ``α = (B - 1) / (B/b - 1)``: exact, whatever the weights do between steps. The
        gradients are held until :meth:`observe`, which takes both or, where one overflows, neither.
        """
        if self.means is not None:
            raise ValueError("part() replaces mean='tracked'; use one of the two")
        if not 0 < batch_size < total:
            raise ValueError(f"a part of {batch_size} samples out of {total}; must be fewer, and at least 1")
        alpha = (total - 1) / (total / batch_size - 1)
        self._part = [None if g is None else g.detach().clone() for g in gradients], alpha, scale

    def forget_part(self) -> None:
        """Drop what :meth:`part` holds: its step was left out."""
        self._part = None

    @torch.no_grad()
    def observe(self, gradients: list[Tensor | None], batch_size: int, scale: float) -> None:
        """The mean gradients over ``batch_size`` samples, times ``scale``."""
        part, self._part = self._part, None
        if part is not None:
            first, alpha, first_scale = part
            finite = self.squares(first, alpha, first_scale, (gradients, abs(1 - alpha), scale))
            rest = (1 - self.decay) * (1 - alpha)
            blend(self.average, gradients, 1.0, rest, finite, scale, square=True)
            self.signed = True
        elif self.means is None:
            self.squares(gradients, batch_size, scale)
        else:
            finite = self.squares(gradients, 1.0, scale)
            blend(self.means, gradients, self.decay, 1 - self.decay, finite, scale)
            blend([self.per_sample], [self._number(1 / batch_size)], self.decay, 1 - self.decay, finite)

    def estimate(self, k: int) -> Tensor:
        if self.means is None:
            return super().estimate(k)
        v, m = (local(part[k]) / taken(self.left).to(part[k].dtype) for part in (self.average, self.means))
        return from_moments(v, m, self._batch().to(v.dtype), weight_squares(self.decay, self.left).to(v.dtype))

    def factor(self) -> Tensor:
        return super().factor() if self.means is None else Curvature.factor(self)

    def _batch(self) -> Tensor:
        return (1 - self.left) / torch.where(self.left < 1, self.per_sample, torch.ones_like(self.per_sample))


class Moments(Curvature):
    """Adam's own averages: ``EF`` from ``exp_avg_sq`` and ``exp_avg``, without a buffer; zero for a parameter that has
    none yet.

    They must have seen loss gradients only. They differ in their decay, so that the estimate may come out negative.
    """

    signed = True

    def __init__(self, items: list[Quantized], optimizer: Optimizers, batch_size: int) -> None:
        super().__init__(items)
        self.optimizer, self.batch_size = optimizer, batch_size
        for item, (_, group) in zip(items, trained_by(optimizer, items), strict=True):
            if "betas" not in group or group.get("amsgrad"):
                raise ValueError(f"the optimizer of {item.name} keeps no exp_avg_sq of its own: needs Adam or AdamW")

    @property
    def ready(self) -> bool:  # type: ignore[override]
        every = several(self.optimizer)
        return any("exp_avg_sq" in one.state.get(item.parameter, {}) for one in every for item in self.items)

    def estimate(self, k: int) -> Tensor:
        item = self.items[k]
        ((optimizer, group),) = trained_by(self.optimizer, [item])
        state, (beta1, beta2) = optimizer.state.get(item.parameter, {}), group["betas"]
        if "exp_avg_sq" not in state:
            return torch.zeros_like(item.local, dtype=item.working_type)
        step = steps_of(state, self.device)
        v = local(state["exp_avg_sq"]).to(item.working_type) / (1 - beta2**step).to(item.working_type)
        m = local(state["exp_avg"]).to(item.working_type) / (1 - beta1**step).to(item.working_type)
        return from_moments(
            v, m, self._number(self.batch_size).to(v.dtype), weight_squares(beta1, beta1**step).to(v.dtype)
        )


def from_moments(v: Tensor, m: Tensor, batch: Tensor, squares: Tensor) -> Tensor:
    """``EF = m² + (v - m²) (B - ρ) / (1 - ρ)``; ``B v`` after a single update, which cannot tell the two apart."""
    single = squares >= 1
    spread = (batch - squares) / torch.where(single, torch.ones_like(squares), 1 - squares)
    return torch.where(single, batch * v, m * m + (v - m * m) * spread)


def steps_of(state: Mapping, device: torch.device) -> Tensor:
    """The number of steps of a parameter in an optimizer, float64: powers of a decay near 1 need the precision."""
    return torch.as_tensor(state["step"], dtype=torch.float64, device=device)


def weight_squares(decay: float, left: Tensor) -> Tensor:
    """Sum of the squared weights of a moving average that has ``left = βⁿ`` to go, divided by ``1 - βⁿ``."""
    return (1 - decay) / (1 + decay) * (1 + left) / (1 - left)


def several(optimizer: Optimizers) -> list[torch.optim.Optimizer]:
    """One optimizer, or several, as a list; ValueError for anything else."""
    found: list[Any] = [optimizer] if hasattr(optimizer, "param_groups") else list(optimizer)
    for one in found:
        if not hasattr(one, "param_groups"):
            raise ValueError(f"optimizer is a {type(one).__name__}; give a torch optimizer, or several in a list")
    return found


def trained_by(optimizer: Optimizers, items: list[Quantized]) -> list[tuple[torch.optim.Optimizer, dict]]:
    """The optimizer of each item and its group there; ValueError for one that none of them has."""
    found: dict[int, tuple[torch.optim.Optimizer, dict]] = {}
    for one in several(optimizer):
        for group in one.param_groups:
            for p in group["params"]:
                found.setdefault(id(p), (one, group))
    for item in items:
        if id(item.parameter) not in found:
            raise ValueError(f"{item.name} is not among the optimizer's parameters")
    return [found[id(item.parameter)] for item in items]


def dense(gradients: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of embeddings with ``sparse=True`` as dense tensors, the others as they are."""
    return [None if g is None else g.to_dense() if g.layout != torch.strided else g for g in gradients]


def squares_fit(gradients: list[Tensor | None], weight: float, scale: float, tops: list[float]) -> bool | Tensor:
    """Whether ``(g/scale)²``, and ``weight`` times it, is finite throughout and at most the ``top`` of its gradient: a
    bool on a CPU, elsewhere a 0-dimensional tensor, for which the host need not wait."""
    present = [(local(g), top) for g, top in zip(gradients, tops, strict=True) if g is not None and local(g).numel()]
    if not present:
        return True
    device = present[0][0].device
    if scale == 1.0 and device.type == "cpu" and not torch.compiler.is_compiling() and _surely_fit(present, weight):
        return True
    # Of a NaN the largest magnitude is NaN, which is at most nothing.
    peaks = [torch.linalg.vector_norm(g, math.inf).to(device, torch.float64) for g, _ in present]
    squares = (torch.stack(peaks) / scale).square()
    fit = squares * max(weight, 1.0) <= torch.tensor([top for _, top in present], dtype=torch.float64, device=device)
    return fit.all() if torch.compiler.is_compiling() or device.type != "cpu" else bool(fit.all())


def _surely_fit(present: list[tuple[Tensor, float]], weight: float) -> bool:
    """Whether even the sum of a gradient's squares fits: one call that says yes of ordinary gradients. Rounded sums of
    numbers that are not negative are no less than each of them; 2 covers the rounding of the root and of squares."""
    norms = torch._foreach_norm([g for g, _ in present], 2.0)
    factor = 2 * max(weight, 1.0)
    return all(factor * n * n <= top for n, (_, top) in zip(map(float, norms), present, strict=True))


def blend(
    buffers: list[Tensor],
    inputs: list[Tensor | None],
    keep: float,
    share: float,
    finite: bool | Tensor,
    scale: float = 1.0,
    square: bool = False,
) -> None:
    """``buffer ← keep · buffer + share · input / scale`` (or the square of the latter) in place, where ``finite``."""
    if finite is False:
        return
    if finite is True and scale == 1.0 and _blend_together(buffers, inputs, keep, share, square):
        return
    for buffer, given in zip(buffers, inputs, strict=True):
        h = local(buffer)
        moved = h.mul_(keep) if finite is True else h * keep
        if given is not None:
            x = local(given).to(h.dtype)
            x = x if scale == 1.0 else x / scale
            moved = moved.addcmul_(x, x, value=share) if square else moved.add_(x, alpha=share)
        if finite is not True:
            h.copy_(torch.where(finite, moved, h))


def _blend_together(
    buffers: list[Tensor], inputs: list[Tensor | None], keep: float, share: float, square: bool
) -> bool:
    """:func:`blend` by one call for all buffers, with the same bits; False, and nothing done, where an input is missing
    or not of its buffer's type, or tensors are sharded."""
    given = [x for x in inputs if x is not None]
    if torch.compiler.is_compiling() or len(given) < len(buffers):
        return False
    if any(is_sharded(h) or x.dtype != h.dtype for h, x in zip(buffers, given, strict=True)):
        return False
    torch._foreach_mul_(buffers, keep)
    if square:
        torch._foreach_addcmul_(buffers, given, given, value=share)
    else:
        torch._foreach_add_(buffers, given, alpha=share)
    return True
