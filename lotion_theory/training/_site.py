"""One quantized tensor under a straight-through rule: the point its loss is evaluated at, and what its gradient
becomes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..formats import fast
from ..formats.quantizer import Quantizer
from ..streams import Stream
from ._tensors import noise
from ._tensors.blocks import Piece, absmax, add_to_leaders_, pieces
from ._tensors.stacks import stackable, stacked, together, unstack_
from .fake import Levels, levels_of
from .rules import Numbers, Place, TensorRule
from .schedules import Gate
from .selection import Quantized, local


def nearest(levels: Levels, x: Tensor) -> Tensor:
    """The cast of the blocks ``x``."""
    return levels.nearest(x, absmax(x), clips=False)


def cast(quantizer: Quantizer, target: Tensor, x: Tensor) -> bool:
    """Write the cast of ``x``, (blocks, n), to ``target`` in one compiled pass with the bits of the plain path; False
    where there is none: other classes and devices, and until so many weights were cast that compiling pays."""
    if any(type(t) is not Tensor for t in (x, target)):
        return False
    lattices = (quantizer.codebook, quantizer.scale)
    return fast.compute(lattices, x.shape[1], "cast", x.detach(), out=target.detach()) is not None


class Now(NamedTuple):
    """A moment of training: the rule's parameters, and the step as compiled code and as Python read it."""

    a: Numbers
    clock: Tensor
    step: int


class Site:
    """``item`` under ``rule``. ``learned``: the parameter behind a learned top, (blocks, 1), or None. ``curvature``: of
    the item's local shape, or None. ``stream``: of the noise. ``nearest``: where set, a compiled :func:`nearest`."""

    def __init__(self, item: Quantized, rule: TensorRule, stream: Stream, curvature: Tensor | None = None) -> None:
        self.item, self.rule, self.stream, self.curvature = item, rule, stream, curvature
        self.key = stream.key()
        self.levels = item.levels
        if rule.own:
            self.levels = levels_of(rule.book, item.parameter.dtype, item.parameter.device)
        self.learned: nn.Parameter | None = None
        self.span = 1.0
        if rule.learned is not None:
            self.span = float(rule.learned.span(rule.book))
            self.learned = nn.Parameter(self._first())
        self.floor: Tensor | None = None
        self.nearest: Callable[[Levels, Tensor], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Compiled code cannot be pickled.
        return self.__dict__ | {"nearest": None}

    def _first(self) -> Tensor:
        assert self.rule.learned is not None, "called where a top is learned"
        return self.rule.learned.start(self._blocks(self.item.local.detach()), self.rule.book)[:, None] / self.span

    @torch.no_grad()
    def restart_(self) -> None:
        """Set a learned top to what it starts from at the present weights."""
        if self.learned is not None:
            self.learned.copy_(self._first())

    @torch.no_grad()
    def quantizer(self, weights: Tensor) -> Quantizer:
        """The grid that ``weights``, of the item's local shape, are trained on: the item's, or, frozen as it is at
        these weights, the one that the rule puts in its place."""
        if not self.rule.own and self.rule.top == "absmax":
            return self.item.quantizer
        return replace(self.item.quantizer, codebook=self.rule.book).with_top(self._top(self._blocks(weights)))

    def _blocks(self, weights: Tensor) -> Tensor:
        return self.item.blocks(weights.to(self.item.working_type)).contiguous()

    def _top(self, x: Tensor) -> Tensor:
        """The highest level of each block, (blocks, 1)."""
        if self.levels is None:
            return x.new_ones(x.shape[0], 1)
        if self.learned is not None:
            # An infinite weight must not be hidden by the clipping: its block becomes NaN.
            return self.learned.detach() * self.span + 0 * absmax(x)
        if self.rule.top == "rms":
            return self.rule.rule.rms * x.square().mean(dim=1, keepdim=True).sqrt()
        if self.rule.top == "absmean":
            return self.rule.rule.rms * x.abs().mean(dim=1, keepdim=True)
        return absmax(x)

    @torch.no_grad()
    def beyond(self) -> int:
        """How many of the weights lie beyond the highest or lowest level."""
        if self.levels is None or self.rule.top == "absmax":
            return 0
        x = self._blocks(self.item.local)
        return int((x.abs() > self._top(x)).sum())

    def _uniforms(self, x: Tensor, count: Tensor, step: int) -> Tensor | None:
        shared = self.rule.rule.noise
        if not shared:
            return None
        # So many consecutive weights share a uniform, counted over the whole tensor whatever part of it is held here.
        first, skip = divmod(self.item.start, shared)
        shape = tuple(x.shape) if shared == 1 else (-(-(skip + x.numel()) // shared),)
        if torch.compiler.is_compiling() or x.device.type != "cpu":
            u = noise.uniforms(self.key, shape, count, first, x.device)
        else:
            u = self.stream.uniforms(shape, step, dtype="float32", like=x, start=first)
        return u if shared == 1 else u.repeat_interleave(shared)[skip : skip + x.numel()].view(x.shape)

    def _place(self, x: Tensor, top: Tensor, u: Tensor | None, piece: Piece, step: int) -> Place:
        if self.levels is not None:
            uniforms = None if u is None else u[piece].to(x.dtype)
            return Place(x[piece], top[piece[0]], self.levels, uniforms, x.shape[1])
        quantizer, draws = self.item.quantizer, None
        if u is not None and quantizer.scale.is_drawn:
            first = self.item.start // x.shape[1]
            draws = self.stream.spawn("scale").uniforms((x.shape[0],), step, dtype="float32", like=x, start=first)
        return GeneralPlace(x, u, draws, quantizer, self.item.parameter.dtype)

    def _pieces(self, x: Tensor) -> list[Piece]:
        # Formats with a scale of their own kind are rounded whole: two-level scales couple the blocks.
        return list(pieces(x)) if self.levels is not None else [(slice(None), slice(None))]

    @cached_property
    def rows(self) -> Quantizer:
        """The item's quantizer for its blocks, (blocks, n)."""
        return self.item.quantizer.with_partition("row")

    def _stored_as(self, x: Tensor) -> bool:
        return x.dtype == self.item.parameter.dtype

    def stacks_as(self, out: Tensor, weights: Tensor) -> tuple[Levels, int] | None:
        """Levels and weights per block, where :meth:`fill_` does no more than cast and sites that share them can be
        served together; else None."""
        if not self.rule.casts or self.levels is None or self.levels.narrow is not None or self.nearest is not None:
            return None
        if not stackable(out, weights):
            return None
        return self.levels, self.item.quantizer.partition.length(tuple(weights.shape))

    @torch.no_grad()
    def fill_(self, out: Tensor, weights: Tensor, gate: Gate, now: Now) -> None:
        """Write to ``out`` where the loss is evaluated for ``weights``, both of the item's local shape and type; the
        weights themselves where the gate is closed."""
        compiling = torch.compiler.is_compiling()
        if not weights.numel() or not (compiling or gate.on):
            out.copy_(weights)
            return
        x = self._blocks(weights)
        direct = out.is_contiguous()
        target = out.view(x.shape) if direct else torch.empty_like(x)
        if direct and not compiling and self.rule.casts and self._stored_as(x) and cast(self.item.quantizer, target, x):
            return
        if self.nearest is not None and not compiling and self.rule.casts and self.levels is not None:
            out.copy_(self.nearest(self.levels, x).view(out.shape))
            return
        top, u, a = self._top(x), self._uniforms(x, now.clock, now.step), _on(now.a, x.device)
        for piece in self._pieces(x):
            p = self._place(x, top, u, piece, now.step)
            point = p.rounded if isinstance(p, GeneralPlace) and self.rule.rounds else self.rule.point(p, a)
            target[piece] = torch.where(gate.tensor, point, x[piece]) if compiling else point
        if not direct:
            out.copy_(target.view(out.shape))

    @torch.no_grad()
    def reset_(self, now: Now) -> None:
        """Set the weights to what the rule makes of them after the optimizer's step."""
        reset = self.rule.rule.reset
        if reset is None or not self.item.local.numel() or not self.item.trained:
            return
        x = self._blocks(self.item.local)
        top, u, a = self._top(x), self._uniforms(x, now.clock, now.step), _on(now.a, x.device)
        result = x.clone()
        for piece in self._pieces(x):
            result[piece] = reset(self._place(x, top, u, piece, now.step), a)
        self.item.local.copy_(result.view(self.item.local.shape))

    @torch.no_grad()
    def correct_(self, now: Now, rate: float | Tensor | None) -> None:
        """Turn the loss gradient in ``.grad`` into what the optimizer is to get; with ``rate``, also take ``rate``
        times the rule's pull off the weights."""
        rule, parameter = self.rule, self.item.parameter
        works = rule.direction is not None or rule.anchor is not None
        pulls = rule.pull is not None and rate is not None
        if not self.item.local.numel() or not (works or pulls):
            return
        if works and parameter.grad is not None and parameter.grad.layout != torch.strided:
            raise RuntimeError(
                f"{self.item.name} has a sparse gradient, which this method cannot correct: make its embedding with "
                "sparse=False, exclude it, or use a method that leaves gradients alone (qat, rr_ste)"
            )
        x = self._blocks(self.item.local)
        top, u, a = self._top(x), self._uniforms(x, now.clock, now.step) if works else None, _on(now.a, x.device)
        h = None if self.curvature is None else self.item.blocks(self.curvature)
        gradient = None if parameter.grad is None or not works else local(parameter.grad)
        g = None if gradient is None else self._blocks(gradient)
        result = None if g is None else g.clone()
        off = torch.zeros_like(x) if pulls else None
        sums = torch.zeros_like(top)
        for piece in self._pieces(x):
            p, here = self._place(x, top, u, piece, now.step), None if h is None else h[piece]
            if g is not None and result is not None and rule.direction is not None:
                result[piece] = rule.direction(p, g[piece], here, a)
            if g is not None and rule.anchor is not None:
                sums[piece[0]] += rule.anchor(p, g[piece], here, a).sum(dim=1, keepdim=True)
            if off is not None and rule.pull is not None:
                off[piece] = rule.pull(p, here, a)
        if result is not None and gradient is not None:
            if self.learned is not None and rule.learned is not None:
                slope = sums * (self.span * rule.learned.factor(x.shape[1], rule.book))
                self.learned.grad = slope + rule.learned.decay * self.learned if rule.learned.decay else slope
            elif rule.anchor is not None and rule.top == "absmean":
                result += sums * (rule.rule.rms / x.shape[1]) * x.sign()
            elif rule.anchor is not None:
                add_to_leaders_(result, x, top, sums)
            gradient.copy_(result.view(gradient.shape))
        if off is not None and rate is not None:
            weights = self.item.local
            weights.sub_((off * rate).view(weights.shape).to(weights.dtype))


@torch.no_grad()
def fill_(sites: Sequence[Site], outs: Sequence[Tensor], weights: Sequence[Tensor], gate: Gate, now: Now) -> None:
    """:meth:`Site.fill_` of all sites, with the same bits; small tensors that are cast, together."""
    alone = torch.compiler.is_compiling() or not gate.on
    kinds = [None if alone else site.stacks_as(out, w) for site, out, w in zip(sites, outs, weights, strict=True)]
    for some in together(range(len(sites)), kinds.__getitem__, lambda k: weights[k].numel()):
        kind = kinds[some[0]]
        if kind is None or len(some) == 1:
            for k in some:
                sites[k].fill_(outs[k], weights[k], gate, now)
            continue
        x = stacked([weights[k] for k in some], kind[1])
        rows = torch.empty_like(x)
        if not cast(sites[some[0]].rows, rows, x):
            rows = nearest(kind[0], x)
        unstack_([outs[k] for k in some], rows)


def _on(a: Numbers, device: torch.device) -> Numbers:
    return tuple(x.to(device) if isinstance(x, Tensor) else x for x in a)


class GeneralPlace(Place):
    """A place for formats that only the quantizer serves: the levels it rounds to, without the lattice behind them.

    ``w`` (blocks, n) is a whole tensor; ``scale_uniforms`` (blocks,) for scales that are drawn.
    """

    def __init__(
        self, w: Tensor, u: Tensor | None, scale_uniforms: Tensor | None, quantizer: Quantizer, stored: torch.dtype
    ) -> None:
        self.w, self.top, self.u, self.scale_uniforms = w, w.new_ones(w.shape[0], 1), u, scale_uniforms
        self.n = w.shape[1]
        # The blocks are the rows here.
        self._quantizer, self._stored = quantizer.with_partition("row"), stored

    @property
    def near(self) -> Tensor:
        return self._quantizer.cast(self.w.to(self._stored)).to(self.w.dtype)

    @property
    def rounded(self) -> Tensor:
        """One randomized rounding from the uniforms."""
        assert self.u is not None, "a rule with noise is given uniforms"
        return self._quantizer.round(self.w.to(self._stored), self.u, self.scale_uniforms).to(self.w.dtype)
