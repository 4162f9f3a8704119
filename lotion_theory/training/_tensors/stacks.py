"""Small tensors worked on together: their blocks below each other, so that one operation serves them all.

On a few thousand weights an operation takes as long as its call. What is computed of each weight, or of each block by
itself, has the bits that it has without company.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from .blocks import CHUNK

SMALL = 1 << 15
"""Weights from which a tensor is worked on by itself. Of so many torch sums a block on several threads, in parts whose
number depends on them."""

T = TypeVar("T")
_PLAIN = (Tensor, nn.Parameter)


def stackable(*tensors: Tensor) -> bool:
    """Whether these tensors of one shape are small, contiguous, of one type, and of no subclass of torch's tensors.
    Nothing is under ``torch.compile``, which fuses operations instead."""
    first = tensors[0]
    if torch.compiler.is_compiling() or not 0 < first.numel() < SMALL:
        return False
    return all(type(t) in _PLAIN and t.dtype == first.dtype and t.is_contiguous() for t in tensors)


def together(things: Iterable[T], key: Callable[[T], Hashable], size: Callable[[T], int]) -> Iterator[list[T]]:
    """What is to be stacked, as soon as it is complete: things of one key, with no more weights than lie in a CPU's
    caches. One whose key is None stays alone."""
    open_: dict[Hashable, tuple[list[T], int]] = {}
    for thing in things:
        of, more = key(thing), size(thing)
        if of is None:
            yield [thing]
            continue
        some, held = open_.get(of, ([], 0))
        if held + more > CHUNK:
            yield some
            some, held = [], 0
        some.append(thing)
        open_[of] = some, held + more
    for some, _ in open_.values():
        yield some


def stacked(tensors: Sequence[Tensor], n: int) -> Tensor:
    """A copy of contiguous ``tensors`` as rows of ``n`` weights, below each other."""
    return torch.cat([t.detach().view(-1, n) for t in tensors])


def unstack_(tensors: Sequence[Tensor], rows: Tensor) -> None:
    """Write the rows of :func:`stacked` to ``tensors``."""
    parts = rows.split([t.numel() // rows.shape[1] for t in tensors])
    torch._foreach_copy_(list(tensors), [part.view_as(t) for t, part in zip(tensors, parts, strict=True)])
