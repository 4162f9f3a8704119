"""What to watch while training: whether the method acts at all, where the weights lie, and what quantization costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..arguments import integer
from ..streams import Stream
from ._model.distributed import mean_over_processes
from ._tensors.blocks import absmax
from ._tensors.term import add_gradient_
from .casts import items_of, quantized
from .fake import ordered
from .penalty import LotionPenalty
from .selection import Quantized, shards
from .straight_through import StraightThrough

OUTER = 0.1
"""Weights within this share of a cell from one of its ends are in its outer tenth; 0.2 of them at a uniform phase."""


class Monitor:
    """Measurements of a penalty, a straight-through trainer, or of a model in a format.

    >>> monitor = Monitor(penalty)
    >>> monitor.measure()  # every now and then
    >>> monitor.losses(lambda: evaluate(model))

    Everything is measured, not read off a switch. Nothing is changed: weights come back bit for bit, rounding has a
    random stream of its own (``seed``). Of sharded parameters, all processes must call it together.
    """

    def __init__(self, source: Any, format: Any = None, seed: int = 0, **patterns: Any) -> None:
        self.source = source
        self.items = items_of(source, format, **patterns)
        self.stream = Stream(seed, "monitor/rounding")
        self._tops: list[Tensor] | None = None

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """The state of this step.

        Of a penalty: "penalty" (its value now), "penalty_gradient" (the norm of its gradient), "penalty_active", 1.0
        where that is not zero, and "skipped_observations" (gradients that overflowed). Of a straight-through trainer:
        "forward_shift" (the distance of the weights the loss sees from the weights, over the norm of the latter) and
        "straight_through_active", 1.0 where that is not zero. Of the weights: "on_grid" (share that are levels),
        "outer_tenth" (share within a tenth of their cell of a level, those on levels included), and "scale_drift" (root
        mean square of the relative change of the blocks' largest magnitudes since the last call; NaN in the first).
        """
        out: dict[str, float] = {}
        if isinstance(self.source, LotionPenalty):
            out |= self._penalty(self.source)
        if isinstance(self.source, StraightThrough):
            points = self.source.points()
            pairs = [(item.local.double(), points[item.name].double()) for item in self.items]
            moved = _total(self.items, [(point - w).square().sum() for w, point in pairs])
            size = _total(self.items, [w.square().sum() for w, _ in pairs])
            out["forward_shift"] = float((moved / size).sqrt()) if size > 0 else float("nan")
            out["straight_through_active"] = float(moved > 0)
        phases = [_phase(item) for item in self.items]
        count = _total(self.items, [_count(p) for p in phases])
        out["on_grid"] = float(_total(self.items, [(p == 0).double().sum() for p in phases]) / count)
        out["outer_tenth"] = float(_total(self.items, [(p <= OUTER).double().sum() for p in phases]) / count)
        out["scale_drift"] = self._drift()
        return out

    def _penalty(self, penalty: LotionPenalty) -> dict[str, float]:
        value = _total(self.items, list(penalty.parts().values()))
        squares = []
        for k, item in enumerate(self.items):
            gradient = torch.zeros_like(item.local, dtype=item.working_type)
            add_gradient_(gradient, item, item.local, *penalty.terms(k))
            squares.append(gradient.double().square().sum())
        norm = float(_total(self.items, squares).sqrt())
        active = {"penalty_active": float(norm > 0), "skipped_observations": float(penalty.skipped)}
        return {"penalty": float(value), "penalty_gradient": norm, **active}

    def _drift(self) -> float:
        tops = [absmax(item.blocks(item.local.to(item.working_type))) for item in self.items]
        previous, self._tops = self._tops, tops
        if previous is None:
            return float("nan")
        changes = [((now - then) / (then + (then == 0))).double() for now, then in zip(tops, previous, strict=True)]
        blocks = _total(self.items, [_count(c) for c in changes])
        return float((_total(self.items, [c.square().sum() for c in changes]) / blocks).sqrt())

    @torch.no_grad()
    def losses(self, evaluate: Callable[[], float | Tensor], samples: int = 1, draw: int = 0) -> dict[str, float]:
        """Losses of ``evaluate()``, a function of the model's present weights: "float", "rtn" (cast to nearest), "rr"
        (the mean over ``samples`` randomized roundings), "rr_error" (its standard error, NaN for one) and "gap" (rtn -
        float).

        ``draw`` numbers the set of roundings: the same number rounds the same way. Data and dropout are ``evaluate``'s
        own affair: use a fixed batch and evaluation mode for losses that can be compared.
        """
        samples, draw = integer(samples, "samples"), integer(draw, "draw", 0)
        own = self.source if getattr(self.source, "items", None) is self.items else _Items(self.items)
        values = {"float": float(evaluate())}
        with quantized(own):
            values["rtn"] = float(evaluate())
        rounded = []
        for sample in range(samples):
            with quantized(own, kind="randomized", stream=self.stream, step=draw * samples + sample):
                rounded.append(float(evaluate()))
        draws = torch.tensor(rounded, dtype=torch.float64, device="cpu")
        values["rr"] = float(draws.mean())
        values["rr_error"] = float(draws.std() / samples**0.5) if samples > 1 else float("nan")
        values["gap"] = values["rtn"] - values["float"]
        return values


class _Items:
    """Selected tensors, in the form that :func:`quantized` takes."""

    def __init__(self, items: list[Quantized]) -> None:
        self.items = items


def _total(items: list[Quantized], parts: list[Tensor]) -> Tensor:
    """The sum of one number per item, over all shards."""
    terms = [part.detach().double() * shards(item.parameter) for item, part in zip(items, parts, strict=True)]
    return mean_over_processes(torch.stack([term.to(terms[0].device) for term in terms]).sum())


def _count(x: Tensor) -> Tensor:
    return torch.tensor(float(x.numel()), dtype=torch.float64, device=x.device)


def _phase(item: Quantized) -> Tensor:
    """How far each weight is from the nearest end of its cell, in cells: 0 to ½, or NaN where a block has a weight that
    is not finite."""
    weights = item.local.detach()
    if not weights.numel():
        return weights.double()
    if item.levels is not None:
        x = item.blocks(weights.to(item.working_type))
        lo, hi = ordered(item.levels.sides(x, absmax(x)))
    elif not bool(weights.isfinite().all()):
        return torch.full_like(weights, float("nan"), dtype=torch.float64)
    else:
        cell = item.quantizer.freeze(weights).branches(weights)[0].cell
        x, lo, hi = cell.target, cell.lo, cell.hi
    up = kernels.prob_up(x, lo, hi)
    return torch.minimum(up, 1 - up)
