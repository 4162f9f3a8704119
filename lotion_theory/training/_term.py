"""One tensor's term of the penalty, and its gradient by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import kernels
from ._blocks import absmax, add_to_leaders_, pieces
from .selection import Quantized


def value(item: Quantized, weights: Tensor, curvature: Tensor, scale: Tensor, attached: bool) -> Tensor:
    """``scale ½ Σ g Var(RR(w))``, differentiable in ``weights``.

    ``weights`` and ``curvature``: of the item's local shape; the latter is not differentiated. ``attached``: whether
    the derivative goes through the moving lattice as well.
    """
    curvature, half = item.blocks(curvature.detach()), (scale * 0.5).to(item.working_type)
    if item.levels is None:
        return (curvature * _general_variance(item, weights, attached)).sum() * half
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
    return (curvature * kernels.variance(x, first, second)).sum() * half


def _general_variance(item: Quantized, weights: Tensor, attached: bool) -> Tensor:
    """The variance for formats that only the quantizer serves, in the working type."""
    quantizer = item.quantizer if attached else item.quantizer.freeze(weights.detach())
    return quantizer.block_law(weights).variance()


@torch.no_grad()
def add_gradient_(
    out: Tensor, item: Quantized, weights: Tensor, curvature: Tensor, scale: Tensor, attached: bool
) -> None:
    """Add the gradient of :func:`value` in ``weights`` to ``out``, of their shape and any float type."""
    if not weights.numel():
        return
    if item.levels is None:
        with torch.enable_grad():
            leaf = weights.detach().clone().requires_grad_()
            (gradient,) = torch.autograd.grad(value(item, leaf, curvature, scale, attached), leaf)
        out.add_(gradient)
        return
    x = item.blocks(weights.detach().to(item.working_type)).contiguous()
    curvature = item.blocks(curvature)
    direct = out.is_contiguous() and out.dtype == x.dtype
    target = out.view(x.shape) if direct else torch.zeros_like(x)
    top, half = absmax(x), (scale * 0.5).to(x.dtype)
    sums = torch.zeros_like(top)
    for rows, columns in pieces(x):
        w, half_g = x[rows, columns], curvature[rows, columns] * half
        sides = item.levels.sides(w, top[rows], clips=False)
        # Exchanging the two levels changes the sign of both factors of the variance: its derivatives do not care.
        in_first = kernels.variance_dlo(w, sides.first, sides.second)
        in_second = kernels.variance_dhi(w, sides.first, sides.second)
        # Moved together with its levels a weight keeps its variance: the three derivatives add up to zero.
        target[rows, columns].addcmul_(half_g, in_first + in_second, value=-1)
        if attached:
            through = in_first.mul_(sides.unit_first).addcmul_(in_second, sides.unit_second)
            sums[rows] += through.mul_(half_g).sum(dim=1, keepdim=True)
    if attached:
        add_to_leaders_(target, x, top, sums)
    if not direct:
        out.add_(target.view(out.shape))
