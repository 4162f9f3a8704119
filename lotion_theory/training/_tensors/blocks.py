"""Blocks of weights worked on piece by piece, so that what lies between two operations stays in a CPU's caches."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 17
"""Weights in a piece."""

SPAN = 512
"""Weights of a block that are summed by themselves."""

Piece = tuple[slice, slice]
_ALL = slice(None)


def pieces(x: Tensor) -> Iterator[Piece]:
    """Slices (of blocks, of weights in them) that cover ``x`` (blocks, n): many whole blocks, or a part of one.

    All of ``x`` at once on an accelerator and under ``torch.compile``, which fuses the operations instead.
    """
    blocks, n = x.shape
    if torch.compiler.is_compiling() or x.device.type != "cpu" or blocks * n <= CHUNK:
        yield _ALL, _ALL
    elif n <= CHUNK:
        for first in range(0, blocks, CHUNK // n):
            yield slice(first, first + CHUNK // n), _ALL
    else:
        for block in range(blocks):
            for first in range(0, n, CHUNK):
                yield slice(block, block + 1), slice(first, first + CHUNK)


def absmax(x: Tensor) -> Tensor:
    """Largest magnitude of each block, (blocks, 1). In autograd, ties share the derivative equally."""
    if x.requires_grad or torch.compiler.is_compiling():
        return x.abs().amax(dim=1, keepdim=True)
    top = x.new_zeros(x.shape[0], 1)
    for rows, columns in pieces(x):
        here = x[rows, columns].abs().amax(dim=1, keepdim=True)
        top[rows] = torch.maximum(top[rows], here)
    return top


def fold(x: Tensor) -> Tensor:
    """Sums along the last axis of ``x``, which is overwritten; always in this order, so that a sum has the same bits on
    any number of threads and in any company. Compiled loops (``fused``) add in this order as well."""
    n = x.shape[-1]
    while n > 1:
        half = (n + 1) // 2
        x.narrow(-1, 0, n - half).add_(x.narrow(-1, half, n - half))
        n = half
    return x.select(-1, 0)


def span_sums(x: Tensor) -> Tensor:
    """Sums of the spans of each block of ``x`` (blocks, n), which is overwritten: (blocks, spans). To be folded."""
    whole = x.shape[1] - x.shape[1] % SPAN
    parts = [fold(x[:, :whole].unflatten(1, (-1, SPAN)))] if whole else []
    if whole < x.shape[1]:
        parts.append(fold(x[:, whole:])[:, None])
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def add_to_leaders_(gradient: Tensor, x: Tensor, top: Tensor, sums: Tensor) -> None:
    """Add to ``gradient`` the share of the absmax, ``sums`` (blocks, 1) being the derivative in it.

    The largest weight of each block gets it, with its sign; ties share equally, blocks of zeros get nothing.
    """
    count = torch.zeros_like(top)
    for rows, columns in pieces(x):
        hit = _hits(x[rows, columns], top[rows])
        count[rows] += hit.sum(dim=1, keepdim=True)
        if columns == _ALL:
            _add(gradient[rows], x[rows], hit, sums[rows], count[rows], top[rows])
    if any(columns != _ALL for _, columns in pieces(x)):
        for rows, columns in pieces(x):
            w = x[rows, columns]
            _add(gradient[rows, columns], w, _hits(w, top[rows]), sums[rows], count[rows], top[rows])


def _hits(x: Tensor, top: Tensor) -> Tensor:
    """1 for the weights of largest magnitude, else 0."""
    return x.abs().eq_(top)


def _add(gradient: Tensor, x: Tensor, hit: Tensor, sums: Tensor, count: Tensor, top: Tensor) -> None:
    # At a hit x / top is its sign. Two roundings, as in compiled loops, where addcmul_ may round once.
    gradient += hit.mul_(x).mul_(sums / (count * (top + (top == 0))))
