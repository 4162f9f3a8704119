"""One tensor's term of the penalty, and its gradient by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from ... import kernels
from ...formats import fast
from ...formats.graphs import one_operation
from ...formats.law import law_of
from ...formats.quantizer import Quantizer
from ...formats.scale_protocol import Jacobian
from ..fake import Levels
from ..selection import Quantized
from . import fused
from .blocks import absmax, add_to_leaders_, fold, pieces, span_sums
from .stacks import stackable, stacked, together, unstack_


def value(item: Quantized, weights: Tensor, curvature: Tensor, scale: Tensor, attached: bool) -> Tensor:
    """``scale ½ Σ g Var(RR(w))``, differentiable in ``weights``.

    ``weights`` and ``curvature``: of the item's local shape; the latter is not differentiated. ``attached``: whether
    the derivative goes through the moving lattice as well.
    """
    curvature, half = item.blocks(curvature.detach()), (scale * 0.5).to(item.working_type)
    if item.levels is None:
        return _general_value(item.quantizer, weights, curvature, half, attached)
    x = item.blocks(weights.to(item.working_type))
    with torch.no_grad():
        plain = x.detach()
        fixed = absmax(plain)
        sides = item.levels.sides(plain, fixed, clips=False)
    first, second = sides.first, sides.second
    if attached:
        # The levels' values stay those above, rounded to the storage type where it is narrow, and move with the top.
        shift = absmax(x) - fixed
        first, second = first + sides.unit_first * shift, second + sides.unit_second * shift
    return kernels.weighted_variance(curvature, x, first, second).sum() * half


@one_operation
def _general_value(quantizer: Quantizer, weights: Tensor, curvature: Tensor, half: Tensor, attached: bool) -> Tensor:
    """``half Σ g Var(RR(w))`` for formats that only the quantizer serves, in the working type; ``curvature``: (blocks,
    n)."""
    found = quantizer if attached else quantizer.freeze(weights.detach())
    parts = curvature * found.block_law(weights).variance()
    # Where there is no curvature a variance may overflow.
    return torch.where(curvature == 0, torch.zeros_like(parts), parts).sum() * half


@one_operation
def _general_gradient(quantizer: Quantizer, weights: Tensor, curvature: Tensor, half: Tensor, attached: bool) -> Tensor:
    """The gradient of :func:`_general_value` in ``weights``, of their shape."""
    rule = quantizer.scale
    if rule.is_drawn or not rule.is_built_in or quantizer.codebook.is_complex:
        with torch.enable_grad():
            leaf = weights.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(_general_value(quantizer, leaf, curvature, half, attached), leaf)
        return gradient
    x, kind = quantizer.blocks(weights.detach())
    jacobian = rule.jacobian(x, quantizer.codebook, kind) if attached else Jacobian()
    anchors = 2 if jacobian.bottom is not None else int(jacobian.top is not None or jacobian.shared is not None)
    weight = curvature * half
    slope, *through = _slopes(quantizer, x, kind, anchors)
    gradient = slope.mul_(weight)
    sums = [fold(span_sums(part.mul_(weight)))[:, None] for part in through]
    for total, rate in zip(sums, (jacobian.top, jacobian.bottom), strict=False):
        if rate is not None:
            gradient += total * rate
    if jacobian.shared is not None:
        factor, rate = jacobian.shared
        gradient += fold((sums[0] * factor).view(-1)) * rate
    return gradient.view(weights.shape)


def _slopes(quantizer: Quantizer, x: Tensor, kind: str, anchors: int) -> tuple[Tensor, ...]:
    """:meth:`.law.BlockLaw.slopes` of the blocks ``x``, stored as ``kind``; in one compiled pass where there is one."""
    lattices = quantizer.codebook, quantizer.scale
    if kind == str(x.dtype).removeprefix("torch."):
        found = fast.compute(lattices, x.shape[1], f"slopes{anchors}", x)
        if found is not None:
            return found
    return law_of(x, kind, quantizer.scale, quantizer.codebook).slopes(anchors)


@torch.no_grad()
def add_gradient_(
    out: Tensor, item: Quantized, weights: Tensor, curvature: Tensor, scale: Tensor, attached: bool
) -> None:
    """Add the gradient of :func:`value` in ``weights`` to ``out``, of their shape and any float type."""
    if not weights.numel():
        return
    if item.levels is None:
        half = (scale * 0.5).to(item.working_type)
        out.add_(_general_gradient(item.quantizer, weights, item.blocks(curvature.detach()), half, attached))
        return
    x = item.blocks(weights.detach().to(item.working_type)).contiguous()
    direct = out.is_contiguous() and out.dtype == x.dtype
    target = out.view(x.shape) if direct else torch.zeros_like(x)
    _add_to_blocks_(target, x, item.blocks(curvature), item.levels, scale, attached)
    if not direct:
        out.add_(target.view(out.shape))


class Term(NamedTuple):
    """What :func:`add_gradient_` takes of one tensor."""

    out: Tensor
    item: Quantized
    weights: Tensor
    curvature: Tensor

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weights.numel()

    @property
    def kind(self) -> tuple[Levels, int] | None:
        """Levels and weights per block, where terms that share them can be stacked; else None."""
        levels = self.item.levels
        if levels is None or levels.narrow is not None or not stackable(self.out, self.weights, self.curvature):
            return None
        return levels, self.length

    @property
    def length(self) -> int:
        """Weights per block."""
        return self.item.quantizer.partition.length(tuple(self.weights.shape))


@torch.no_grad()
def add_gradients_(terms: Iterable[Term], scale: Tensor, attached: bool) -> None:
    """:func:`add_gradient_` of all terms, with the same bits; small tensors together."""
    for some in together(terms, attrgetter("kind"), attrgetter("size")):
        near, kind = scale.to(some[0].out.device), some[0].kind
        triples = [(term.out, term.weights, term.curvature) for term in some]
        if kind is not None and fused.in_demand(kind[0], sum(term.size for term in some)):
            fused.job(triples, kind[1], kind[0], near, attached)()
        elif kind is None or len(some) == 1:
            add_gradient_(*some[0], near, attached)
        else:
            target, x, curvature = (stacked(tensors, kind[1]) for tensors in zip(*triples, strict=True))
            _add_to_blocks_(target, x, curvature, kind[0], near, attached)
            unstack_([term.out for term in some], target)


def jobs_of(terms: Iterable[Term], scale: Tensor, attached: bool) -> Iterator[Callable[[], None]]:
    """:func:`add_gradient_` of each term as a job for ``fused.in_parallel``; what the loops do not serve is done at
    once."""
    for term in terms:
        out, item, weights, curvature = term
        tensors = out, weights.detach(), curvature
        if item.levels is not None and weights.numel() and all(fused.serves(item.levels, x) for x in tensors):
            yield fused.job([tensors], term.length, item.levels, scale, attached)
        else:
            add_gradient_(*term, scale.to(out.device), attached)


def _add_to_blocks_(
    target: Tensor, x: Tensor, curvature: Tensor, levels: Levels, scale: Tensor, attached: bool
) -> None:
    """The gradient for the blocks ``x``, added to ``target``; all (blocks, n)."""
    top, half = absmax(x), (scale * 0.5).to(x.dtype)
    spans: dict[int, list[Tensor]] = {}
    for rows, columns in pieces(x):
        w, half_g = x[rows, columns], curvature[rows, columns] * half
        # Exchanging the two levels changes neither derivative.
        at = levels.sides(w, top[rows], clips=False)
        if attached:
            through = kernels.variance_danchor(w, at.first, at.second, at.unit_first, at.unit_second)
            spans.setdefault(rows.start or 0, []).append(span_sums(through.mul_(half_g)))
        target[rows, columns].add_(half_g.mul_(kernels.variance_dw(w, at.first, at.second)))
    if attached:
        sums = [fold(torch.cat(parts, dim=1)) for parts in spans.values()]
        add_to_leaders_(target, x, top, torch.cat(sums)[:, None])
