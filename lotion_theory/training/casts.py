"""Quantized weights in a model for a while: to evaluate what will be deployed."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..formats.quantizer import Quantizer
from ..streams import Stream
from ._model.swap import swapped
from .selection import Quantized, select
from .straight_through import StraightThrough

Format = str | Quantizer
KINDS = ("nearest", "randomized")


def cast_of(
    item: Quantized,
    weights: Tensor,
    kind: str = "nearest",
    stream: Stream | None = None,
    step: int = 0,
    quantizer: Quantizer | None = None,
) -> Tensor:
    """The local weights of ``item`` rounded by ``quantizer``, by default its own: to nearest (RTN), or randomized (RR)
    with uniforms of ``stream`` and ``step``, the same for any sharding. ValueError for weights that are not finite."""
    if not weights.numel():
        return weights
    quantizer = quantizer or item.quantizer
    if kind == "nearest":
        return quantizer.cast(weights.detach())
    assert stream is not None, "checked by quantized()"
    own = stream.spawn(item.name)
    u = own.uniforms(tuple(weights.shape), step, like=weights, start=item.start)
    draws = None
    if quantizer.scale.is_drawn:
        blocks, n = item.blocks(weights).shape
        draws = own.spawn("scale").uniforms((blocks,), step, like=weights, start=item.start // n)
    return quantizer.round(weights.detach(), u, draws)


@contextmanager
def quantized(
    model: Any,
    format: Format | Mapping[str, Format] | None = None,
    kind: str = "nearest",
    stream: Stream | None = None,
    step: int = 0,
    include: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    frozen: bool = False,
) -> Iterator[list[Quantized]]:
    """Inside the block, the quantized parameters of ``model`` hold their casts; afterwards their own bits again.

    >>> with quantized(model, "int4/absmax/block=32", exclude=("embed*",)):
    ...     deployed_loss = evaluate(model)

    Args:
        model: a module or ``named_parameters()``, with ``format``, ``include``, ``exclude`` and ``frozen`` as for
            :func:`~lotion_theory.training.select`; or a penalty or straight-through trainer, for exactly its tensors
            and format (of "lsq" and "quest": the grid they train on). ``format`` may be ``pattern -> format`` instead
            of ``include``: each takes the parameters that it matches and none before it took; others stay as they are.
            A parameter that holds a rounded point keeps it on a frozen format, e.g. ``{name: q.freeze(w)}`` with the
            weights ``w`` that were rounded, or :attr:`lotion_theory.export.Encoded.frozen`; any other format finds a
            new lattice for the point.
        kind: "nearest" (RTN) or "randomized" (RR), which needs ``stream``; ``step`` numbers the draws.

    Raises ValueError for what is not valid; RuntimeError if a parameter was changed inside the block, or the block is
    entered while its parameters are replaced already by the same trainer.
    """
    if kind not in KINDS:
        raise ValueError(f"kind = {kind!r}; valid: {', '.join(KINDS)}")
    if (kind == "randomized") != (stream is not None):
        raise ValueError("kind='randomized' needs stream=Stream(seed, purpose), kind='nearest' takes none")
    items = items_of(model, format, include, exclude, frozen)

    def write(originals: list[Tensor]) -> None:
        for item, weights in zip(items, originals, strict=True):
            grid = model.quantizer(item.name, weights) if isinstance(model, StraightThrough) else item.quantizer
            item.local.copy_(cast_of(item, weights, kind, stream, step, grid))

    with swapped(items, write):
        yield items


def items_of(
    model: Any,
    format: Format | Mapping[str, Format] | None,
    include: tuple[str, ...] | list[str] = (),
    exclude: tuple[str, ...] | list[str] = (),
    frozen: bool = False,
) -> list[Quantized]:
    """The tensors of a penalty or straight-through trainer, or those selected from a model for a format."""
    items = getattr(model, "items", None)
    if isinstance(items, list) and items and isinstance(items[0], Quantized):
        if format is not None or include or exclude:
            raise ValueError("the tensors and the format are those of the given trainer: leave format and patterns out")
        return items
    if format is None:
        raise ValueError("give format, e.g. 'int4/absmax/block=32'")
    source: nn.Module | Iterable[tuple[str, nn.Parameter]] = model
    if not isinstance(format, Mapping):
        return select(source, format, include, exclude, frozen)
    if include or not format:
        raise ValueError("formats by pattern say what is included: give at least one, and leave include out")
    if not isinstance(source, nn.Module):
        source = list(source)  # read once for every pattern
    taken: list[Quantized] = []
    for pattern, each in format.items():
        known = [glob.escape(item.name) for item in taken]
        taken += select(source, each, (pattern,), (*exclude, *known), frozen)
    return taken
