"""Gauss-Newton-Bartlett: the diagonal of the Gauss-Newton matrix from gradients at labels sampled from the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..arguments import integer, number
from ..streams import Stream
from ._model.aside import set_aside
from ._model.distributed import quadratic_mean_over_processes
from .curvature import SCALES, Average, dense
from .kfac import Kfac
from .selection import is_sharded

if TYPE_CHECKING:
    from .measuring import Measured

_TOP_SEED = 2**63
_ROWS = 1024


def sampled_labels(logits: Tensor, seed: int, step: int) -> Tensor:
    """One label per row of ``logits`` (rows, classes), drawn from their softmax; a function of (seed, step), so that no
    other random stream is touched and a resumed run draws the same."""
    generator = torch.Generator(device=logits.device)
    generator.manual_seed(int(Stream(seed, "gnb/labels").numpy_generator(step).integers(_TOP_SEED)))
    # A few rows at a time: the probabilities of a batch of long texts over a large vocabulary would take gigabytes.
    drawn = [torch.multinomial(_shares(part.detach()), 1, generator=generator) for part in logits.split(_ROWS)]
    return torch.cat(drawn).squeeze(1)


def _shares(logits: Tensor) -> Tensor:
    # Where logits are not finite so is the loss, whatever label is drawn, and the update is left out.
    return logits.float().softmax(dim=-1).nan_to_num(nan=1.0)


def sampled_targets(outputs: Tensor, seed: int, step: int) -> Tensor:
    """Targets for ``outputs`` (rows, outputs) of a squared error: these plus Gaussian noise of half their number as its
    variance, the law under which the mean squared error is a negative log-likelihood; a function of (seed, step)."""
    generator = torch.Generator(device=outputs.device)
    generator.manual_seed(int(Stream(seed, "gnb/targets").numpy_generator(step).integers(_TOP_SEED)))
    noise = torch.randn(outputs.shape, generator=generator, device=outputs.device, dtype=outputs.dtype)
    return outputs.detach() + (outputs.shape[-1] / 2) ** 0.5 * noise


LOSSES = ("cross_entropy", "squared")


def gnb_update(
    penalty: Measured,
    logits: Tensor,
    backward: Callable[[Tensor], None] | None = None,
    *,
    loss: str = "cross_entropy",
    mask: Tensor | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    scale: float = 1.0,
    retain_graph: bool = False,
) -> None:
    """One update of a penalty's curvature from ``logits`` (..., classes) of a classifier or language model, or from
    outputs of a model that is trained on their squared error.

    Draws labels ``ŷ ~ softmax(logits)`` and takes ``B ĝ²`` into the moving average, ``ĝ`` being the gradient of the
    mean cross-entropy over the ``B`` predictions: an unbiased estimate of the diagonal of the Gauss-Newton matrix with
    a relative standard deviation of √2 per draw (Sophia-G, arXiv 2305.14342). True labels would give the empirical
    Fisher instead. With ``loss="squared"`` Gaussian targets take the place of labels: the diagonal for
    ``nn.MSELoss()(outputs, targets)``, whatever the targets are, a teacher's outputs among them. One update every ten
    steps or so is enough.

    Args:
        penalty: with curvature "gnb", or "kfac" and ``watch``.
        logits: with their graph, of a forward pass of its own or of the training step (then before its backward pass
            and with ``retain_graph``).
        loss: "cross_entropy", or "squared" (averaged over the outputs, the last axis, and over predictions).
        backward: how to run the backward pass, e.g. ``accelerator.backward``; each ``.grad`` is put aside meanwhile.
            None takes the gradients without touching any ``.grad`` and averages over processes by itself; sharded
            parameters (FSDP2) cannot do that, and under DDP ``logits`` must then come from the module inside it.
        mask: True at the predictions that count, of ``logits``' shape but for its last axis; None for all.
        seed: of the labels, with the penalty's step; give each process its own.
        batch_size: ``B``; by default the number of predictions here. With ``backward`` under DDP or FSDP, which average
            over processes, that of all processes.
        scale: what ``backward`` multiplies the loss by, e.g. the loss scale of AMP.
        retain_graph: keep the graph of ``logits`` for a further backward pass (without ``backward``).

    Raises ValueError or RuntimeError for a penalty with another curvature, and for arguments that are not valid.
    """
    _check(penalty, loss)
    rows = _predictions(logits, mask)
    count = len(rows) if batch_size is None else integer(batch_size, "batch_size")
    scale = number(scale, "scale", *SCALES)
    value = _sampled_loss(rows, loss, seed, penalty.number)
    if backward is not None:
        gradients = _through(backward, value, penalty)
    elif any(is_sharded(item.parameter) for item in penalty.items):
        raise RuntimeError("sharded parameters get their gradients in a backward pass only: give backward")
    elif scale != 1.0:
        raise ValueError(f"scale = {scale!r} without backward, which nothing multiplies")
    else:
        gradients = _gradients(value, [item.parameter for item in penalty.items], retain_graph)
    average = penalty.curvature
    if isinstance(average, Kfac):
        average.observe(count, scale)
        return
    assert isinstance(average, Average), "curvature 'gnb' is a plain average"
    with torch.no_grad():
        gradients = dense(gradients)
        if backward is None:
            gradients = [None if g is None else quadratic_mean_over_processes(g) for g in gradients]
        average.squares(gradients, count, scale)


def _check(penalty: Measured, loss: str) -> None:
    """RuntimeError or ValueError for a penalty or a loss that :func:`gnb_update` is not for."""
    if penalty.kind not in ("gnb", "kfac"):
        raise RuntimeError(f"gnb_update() is for curvature 'gnb' or 'kfac', this one is {penalty.kind!r}")
    if loss not in LOSSES:
        raise ValueError(f"loss = {loss!r}; valid: {', '.join(LOSSES)}")
    penalty.check_place("gnb_update")


def _sampled_loss(rows: Tensor, loss: str, seed: int, number: int) -> Tensor:
    """The mean loss of the predictions at labels or targets drawn from them."""
    if loss == "squared":
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        return F.mse_loss(rows, sampled_targets(rows, seed, number))
    return F.cross_entropy(rows.float(), sampled_labels(rows, seed, number))


def _predictions(logits: Tensor, mask: Tensor | None) -> Tensor:
    """The rows of ``logits`` that count; ValueError for what has no graph or leaves none."""
    if not logits.requires_grad:
        raise ValueError("logits carry no graph: compute them with gradients enabled")
    rows = logits.reshape(-1, logits.shape[-1])
    if mask is not None:
        if mask.shape != logits.shape[:-1] or mask.dtype != torch.bool:
            expected = tuple(logits.shape[:-1])
            raise ValueError(f"mask has type {mask.dtype} and shape {tuple(mask.shape)}, expected bool and {expected}")
        rows = rows[mask.reshape(-1)]
    if not len(rows):
        raise ValueError("mask leaves no prediction")
    return rows


def _through(backward: Callable[[Tensor], None], loss: Tensor, penalty: Measured) -> list[Tensor | None]:
    """The gradients that ``backward(loss)`` leaves in the penalty's tensors; every ``.grad`` is put aside meanwhile."""
    with set_aside(penalty.every):
        backward(loss)
        return [item.parameter.grad for item in penalty.items]


def _gradients(loss: Tensor, parameters: list[nn.Parameter], retain_graph: bool) -> list[Tensor | None]:
    """The gradients of the parameters, None of those that are frozen or play no part."""
    trained = [p for p in parameters if p.requires_grad]
    if not trained:
        return [None] * len(parameters)
    found = iter(torch.autograd.grad(loss, trained, retain_graph=retain_graph, allow_unused=True))
    return [next(found) if p.requires_grad else None for p in parameters]
