"""Uniforms of a :class:`lotion_theory.Stream` inside compiled graphs: the step is a tensor, so no step is compiled
anew."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from ... import _philox


def uniforms(key: tuple[int, int], shape: tuple[int, ...], step: Tensor, start: int, device: torch.device) -> Tensor:
    """What ``stream.uniforms(shape, step, dtype="float32", start=start)`` gives, bit for bit, on ``device``.

    ``key``: ``stream.key()``. ``step``: 0-dimensional int64 tensor, not negative. ``start``: number of
    the first element.
    """
    size = math.prod(shape)
    first, skip = divmod(operator.index(start), 4)
    counters = -(-(skip + size) // 4)
    index = torch.arange(first, first + counters, dtype=torch.int64, device=device)
    step = step.to(device)
    words = _philox.philox4x32(
        _philox.low32(index), _philox.high32(index), _philox.low32(step), _philox.high32(step), *key
    )
    table = torch.stack([part.to(torch.float32) * _philox.UNIT24 for part in _philox.top24(*words)], dim=1)
    return table.reshape(-1)[skip : skip + size].reshape(shape)
