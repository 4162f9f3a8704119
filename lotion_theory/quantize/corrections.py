"""What may be set right after rounding, each undone by a call: statistics of BatchNorm, and biases."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .layers import find_layers
from .run import Quantization
from .walk import Batch, run

Undo = Callable[[], None]


def _undo(kept: list[tuple[Tensor, Tensor]]) -> Undo:
    def undo() -> None:
        with torch.no_grad():
            for tensor, before in kept:
                tensor.copy_(before)

    return undo


@torch.no_grad()
def recalibrate_norms(model: nn.Module, batches: Iterable[Batch]) -> Undo:
    """Measure running means and variances of every BatchNorm layer anew, as plain averages over ``batches``.

    Rounded weights shift the statistics that a float model was trained with. Dropout and all else stay in evaluation
    mode. Returns a call that puts the old statistics back. Raises ValueError for a model without such layers or no
    batches.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise ValueError("the model has no BatchNorm layer with running statistics")
    modes = {module: module.training for module in model.modules()}
    momenta = [norm.momentum for norm in norms]
    kept = [(tensor, tensor.clone()) for norm in norms for tensor in norm.buffers()]
    model.eval()
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None  # None: a plain average
        seen = 0
        for batch in batches:
            run(model, batch)
            seen += 1
    except BaseException:
        _undo(kept)()
        raise
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not seen:
        _undo(kept)()
        raise ValueError("there are no batches to measure the statistics on")
    return _undo(kept)


@torch.no_grad()
def correct_biases(found: Quantization) -> Undo:
    """Add ``(W - Q) mean(x)`` to the bias of every rounded layer that has one, x being its inputs in calibration.

    The mean output of a layer is then that of its float weights (Nagel et al., arXiv 1906.04721, section 4.2). A
    BatchNorm behind the layer sees the shift, so that :func:`recalibrate_norms` comes after it. Needs a
    :class:`Quantization` made with ``keep_originals``. Returns a call that puts the old biases back. Raises ValueError
    without originals, and where no rounded layer has a bias.
    """
    if not found.originals:
        raise ValueError("the float weights are gone; give keep_originals=True to quantize")
    kept = []
    for layer in find_layers(found.model)[0]:
        bias, mean = getattr(layer.module, "bias", None), found.means.get(layer.name)
        if bias is None or mean is None or layer.name not in found.originals:
            continue
        lost = layer.matrix(found.originals[layer.name].double() - layer.weight.double())
        shift = (lost.reshape(layer.groups, -1, lost.shape[1]) * mean[:, None]).sum(-1).reshape(-1)
        kept.append((bias, bias.clone()))
        bias += shift.to(bias.dtype)
    if not kept:
        raise ValueError("no rounded layer has a bias")
    return _undo(kept)
