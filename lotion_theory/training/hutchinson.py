"""Hutchinson's estimate of the Hessian's diagonal, for losses of any kind: products with random signs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..arguments import integer
from ..streams import Stream
from ._model.distributed import mean_over_processes
from .curvature import Estimates, dense
from .selection import is_sharded

if TYPE_CHECKING:
    from .measuring import Measured


def hutchinson_update(penalty: Measured, loss: Tensor, *, seed: int = 0, probes: int = 1) -> None:
    """One update of a penalty's curvature from a scalar ``loss`` with its graph, which it leaves behind.

    Takes the mean of ``v · (H v)`` over ``probes`` vectors ``v`` of random signs into the moving average: an unbiased
    estimate of the diagonal of the loss's Hessian ``H`` over the quantized weights, of variance ``Σ_j≠i H_ij²`` a
    probe. That is the Gauss-Newton diagonal where outputs are affine in each single weight (linear and ReLU networks);
    elsewhere it may be negative, and counts as zero then. ``H v`` comes from differentiating twice, so every operation
    of the model must be differentiable twice (fused attention kernels are not). No ``.grad`` is touched.

    Raises ValueError or RuntimeError for a penalty with another curvature, and for arguments that are not valid.
    """
    if penalty.kind != "hutchinson":
        raise RuntimeError(f"hutchinson_update() is for curvature 'hutchinson', this one is {penalty.kind!r}")
    penalty.check_place("hutchinson_update")
    probes = integer(probes, "probes")
    if not loss.requires_grad or loss.numel() != 1:
        raise ValueError("loss must be one number with its graph: compute it with gradients enabled")
    if any(is_sharded(item.parameter) for item in penalty.items):
        raise RuntimeError("curvature='hutchinson' differentiates twice, which sharded parameters (FSDP2) cannot")
    live = [(k, item) for k, item in enumerate(penalty.items) if item.trained]
    parameters = [item.parameter for _, item in live]
    if not parameters:
        return
    gradients = dense(list(torch.autograd.grad(loss, parameters, create_graph=True, allow_unused=True)))
    stream, number = Stream(seed, "hutchinson"), penalty.number
    totals: list[Tensor | None] = [None] * len(penalty.items)
    for probe in range(probes):
        signs = [
            _signs(stream.spawn(f"{item.name}/{probe}"), number, p)
            for (_, item), p in zip(live, parameters, strict=True)
        ]
        used = [(g, v) for g, v in zip(gradients, signs, strict=True) if g is not None and g.requires_grad]
        slope = sum((g * v).sum() for g, v in used)
        if not isinstance(slope, Tensor):
            break
        products = torch.autograd.grad(slope, parameters, retain_graph=probe < probes - 1, allow_unused=True)
        for (k, item), v, product in zip(live, signs, products, strict=True):
            if product is not None:
                part = (v * product).detach().to(item.working_type) / probes
                before = totals[k]
                totals[k] = part if before is None else before + part
    average = penalty.curvature
    assert isinstance(average, Estimates), "curvature 'hutchinson' averages estimates"
    average.take([None if x is None else mean_over_processes(x) for x in totals])


def _signs(stream: Stream, number: int, like: Tensor) -> Tensor:
    u = stream.uniforms(tuple(like.shape), number, like=like)
    return torch.where(u < 0.5, -1.0, 1.0).to(like.dtype)
